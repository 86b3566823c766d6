"""Two attempts of one training in one folder: the later one holds it, and the earlier one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dashboard.models.jobs import checkpoint
from tests.engine.checkpoints.test_checkpoints import assert_equal_runs, curves
from tests.engine.conftest import Recorder
from tests.moments import raising
from workers.contract import checkpoint_ownership
from workers.contract.errors import DiskFull, TakenOver
from workers.contract.events import ArmEnd, Checkpoint, Event, Finished, Message, from_line
from workers.contract.specs import TrainSpec, to_dict
from workers.engine.training import artifacts, checkpoints
from workers.engine.training.train import train

ROOT = Path(__file__).parents[3]
MakeSpec = Callable[..., TrainSpec]


class Witness(Recorder):
    """Keeps events, and does something once when the checkpoint of a step is told."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.step, self.act = step, act

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, Checkpoint) and event.step == self.step:
            self.act()


@pytest.fixture
def specs(make_spec: MakeSpec) -> list[TrainSpec]:
    return [make_spec(max_steps=12, lora_dropout=0.2, validation_steps=3)]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def run(
    specs: list[TrainSpec], out: Path, kept: Path, attempt: int, record: Recorder, **options: Any
) -> list[ArmEnd]:
    """Train as this attempt of a job."""
    checkpoint_ownership.take_ownership(kept, attempt)
    resume = checkpoints.find_newest(kept, record)
    options = {"resume_from": resume, "checkpoint_dir": kept, "attempt": attempt} | options
    return train(specs, out, report=record, **options)


def names(kept: Path) -> list[str]:
    return sorted(path.name for path in kept.iterdir() if path.name != checkpoint_ownership.OWNER)


def at_rename(
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> list[str]:
    """Act just before or after the N-th checkpoint gets its name; returns the names given, as a live list."""
    real, names_given = Path.rename, list[str]()

    def rename(path: Path, target: Path) -> Path:
        is_checkpoint = target.name.isdecimal()
        if is_checkpoint and len(names_given) == at - 1:
            before()
        renamed = real(path, target)
        if is_checkpoint:
            names_given.append(target.name)
            if len(names_given) == at:
                after()
        return renamed

    monkeypatch.setattr(Path, "rename", rename)
    return names_given


def lose(specs: list[TrainSpec], tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The first attempt loses the folder between its look and the rename of its third; what it has told."""
    record = Recorder()
    with monkeypatch.context() as stopped:
        at_rename(stopped, 3, before=lambda: checkpoint_ownership.take_ownership(kept, 2))
        with pytest.raises(TakenOver):
            run(specs, tmp_path / "first", kept, 1, record)
    return record


def test_earlier_attempt_ends_before_its_next_checkpoint(
    specs: list[TrainSpec], tmp_path: Path, kept: Path
) -> None:
    whole, second = Recorder(), Recorder()
    ends = train(specs, tmp_path / "whole", report=whole)
    first = Witness(6, lambda: checkpoint_ownership.take_ownership(kept, 2))
    with pytest.raises(TakenOver, match="Attempt 2 has taken over"):
        run(specs, tmp_path / "first", kept, 1, first)
    assert [event.step for event in first.of(Checkpoint)] == [3, 6]
    assert names(kept) == ["000001", "000002"], "it neither wrote nor removed anything"
    resumed = run(specs, tmp_path / "second", kept, 2, second)
    assert "Continues from step 6." in [event.text for event in second.of(Message)]
    assert_equal_runs(
        (tmp_path / "whole", ends, curves(whole)), (tmp_path / "second", resumed, curves(first, second))
    )


def test_earlier_attempt_ends_before_its_checkpoint_gets_a_name(
    specs: list[TrainSpec], tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(path: Path) -> None:
        if path.name == checkpoint_ownership.MANIFEST and (kept / "000002").exists():
            checkpoint_ownership.take_ownership(kept, 2)
        artifacts.sync(path)

    monkeypatch.setattr(checkpoints, "sync", sync)
    with pytest.raises(TakenOver):
        run(specs, tmp_path / "first", kept, 1, Recorder())
    assert names(kept) == ["000001", "000002"]


def test_earlier_attempt_removes_no_checkpoint_of_the_later_one(
    specs: list[TrainSpec], tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names_given = at_rename(monkeypatch, 3, after=lambda: checkpoint_ownership.take_ownership(kept, 2))
    with pytest.raises(TakenOver):
        run(specs, tmp_path / "first", kept, 1, Recorder())
    assert names(kept) == names_given == ["000001", "000002", "000003"]


def test_checkpoints_written_after_the_takeover_do_not_count(
    specs: list[TrainSpec], tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, second = Recorder(), Recorder()
    ends = train(specs, tmp_path / "whole", report=whole)
    first = lose(specs, tmp_path, kept, monkeypatch)
    assert names(kept) == ["000001", "000002", "000003"]
    assert checkpoint.newest_step(kept) == 6, "pages offer what the engine would take"
    record = Recorder()
    checkpoint_ownership.take_ownership(kept, 3)  # the second died before it had written any
    assert checkpoints.find_newest(kept, record) == kept / "000002"
    assert not record.of(Message), "they are not damaged, and nobody's"
    resumed = run(specs, tmp_path / "third", kept, 3, second)
    assert "Continues from step 6." in [event.text for event in second.of(Message)]
    assert_equal_runs(
        (tmp_path / "whole", ends, curves(whole)), (tmp_path / "third", resumed, curves(first, second))
    )
    attempts = [json.loads((kept / name / "manifest.json").read_text())["attempt"] for name in names(kept)]
    assert attempts == [3, 3], "the strangers are cleared away"


def test_earlier_attempt_cannot_take_ownership_back(kept: Path) -> None:
    checkpoint_ownership.take_ownership(kept, 2)
    with pytest.raises(TakenOver):
        checkpoint_ownership.take_ownership(kept, 1)
    checkpoint_ownership.take_ownership(kept, 2)
    assert checkpoint_ownership.read_owner(kept).attempt == 2


def test_checkpoints_without_owner_count(specs: list[TrainSpec], tmp_path: Path, kept: Path) -> None:
    train(specs, tmp_path / "old", report=Recorder(), checkpoint_dir=kept)
    assert not (kept / checkpoint_ownership.OWNER).exists()
    checkpoint_ownership.take_ownership(kept, 4)
    assert checkpoints.find_newest(kept, Recorder()) == kept / names(kept)[-1]
    assert checkpoint.newest_step(kept) == 12


@pytest.mark.parametrize("text", ["{", "[]", '{"attempt": "x", "inherited": []}'])
def test_unreadable_owner_file_is_ignored(kept: Path, text: str) -> None:
    kept.mkdir()
    (kept / checkpoint_ownership.OWNER).write_text(text)
    checkpoint_ownership.take_ownership(kept, 2)
    assert checkpoint_ownership.read_owner(kept).attempt == 2


def test_first_attempt_creates_no_folder(kept: Path) -> None:
    checkpoint_ownership.take_ownership(kept, 1)
    assert not kept.exists()


def test_attempt_without_number_is_the_next_one(kept: Path) -> None:
    assert [checkpoints.take_ownership(kept, 0), checkpoints.take_ownership(kept, 0)] == [2, 3]
    with pytest.raises(TakenOver):
        checkpoint_ownership.check_ownership(kept, 2)


def test_failed_ownership_write_raises(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", raising(os.fsync, "EACCES"))
    with pytest.raises(checkpoints.CheckpointUnreadable, match="Permission denied"):
        checkpoints.take_ownership(kept, 2)
    monkeypatch.setattr(os, "fsync", raising(os.fsync, "ENOSPC"))
    with pytest.raises(DiskFull):
        checkpoints.take_ownership(kept, 2)
    assert not list(kept.iterdir())


def start(spec: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "workers.engine", "train", str(spec), str(out)]
    return subprocess.Popen(
        [*command, "--checkpoints", str(out.parent / "checkpoints")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def told(said: bytes) -> list[Event]:
    return [from_line(line) for line in said.splitlines()]


@pytest.mark.slow
def test_first_of_two_engines_ends_as_taken_over(specs: list[TrainSpec], tmp_path: Path, kept: Path) -> None:
    spec = tmp_path / "spec.json"
    longer = replace(specs[0], hyperparameters=replace(specs[0].hyperparameters, max_steps=60))
    spec.write_text(json.dumps(to_dict(longer)))
    first = start(spec, tmp_path / "first")
    try:
        until = time.monotonic() + 240
        while not (kept / "000001").exists():
            assert first.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        # It stands still after its first checkpoint, as on a machine that sleeps.
        first.send_signal(signal.SIGSTOP)
        second = start(spec, tmp_path / "second")
        said, _log = second.communicate(timeout=240)
        assert second.returncode == 0
        assert told(said)[-1] == Finished("done")
        messages = [event.text for event in told(said) if isinstance(event, Message)]
        assert any(text.startswith("Continues from step ") for text in messages)
        first.send_signal(signal.SIGCONT)
        said, log = first.communicate(timeout=240)
    finally:
        first.kill()
    assert (first.returncode, told(said)[-1]) == (3, Finished("taken_over"))
    assert b"Attempt 3 has taken over the checkpoints of this training" in log
    assert b"Traceback" not in log
    assert not [event for event in told(said) if isinstance(event, ArmEnd)]
