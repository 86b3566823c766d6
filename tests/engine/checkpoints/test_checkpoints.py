"""A run that was cut off continues as if nothing had happened, or says why it cannot."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.conftest import Recorder, spec_maker
from tests.moments import raising
from workers.contract.errors import DiskFull, RunError, Stopped
from workers.contract.events import ArmEnd, Checkpoint, Event, Message, Metrics, Progress
from workers.contract.specs import BaseSpec, DataSpec, TrainSpec
from workers.engine.__main__ import failure
from workers.engine.training import checkpoints, loss
from workers.engine.training.checkpoints import CheckpointUnreadable
from workers.engine.training.train import train

Curves = dict[tuple[int, str], dict[int, float]]
Run = tuple[Path, list[ArmEnd], Curves]
MEASURED = ("train/loss", "train/grad_norm", "train/learning_rate", "validation/loss")
COUNTED = (
    "steps",
    "tokens",
    "train_loss",
    "validation_loss",
    "best_validation_loss",
    "best_validation_step",
)


class Killed(BaseException):
    """Nothing in the engine catches this, so nothing is written on the way out, as with a SIGKILL."""


class Fuse(Recorder):
    """Keeps events, and kills the run as soon as `arm` has measured `name` at `step`."""

    def __init__(self, step: int, arm: int = 0, name: str = "train/loss") -> None:
        super().__init__()
        self.at = (arm, step, name)

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        arm, step, name = self.at
        if isinstance(event, Metrics) and (event.arm, event.step) == (arm, step) and name in event.values:
            raise Killed


def curves(*records: Recorder) -> Curves:
    """(arm, name) -> step -> value, later events over earlier ones, as the database keeps them."""
    found: Curves = {}
    for event in (event for record in records for event in record.of(Metrics)):
        for name in MEASURED:
            if name in event.values:
                found.setdefault((event.arm, name), {})[event.step] = event.values[name]
    return found


def tensors(out: Path, arm: int = 0) -> dict[str, torch.Tensor]:
    return load_file(out / f"arm-{arm}/adapter/adapter_model.safetensors")


def run_on(specs: list[TrainSpec], out: Path, record: Recorder, **options: Any) -> list[ArmEnd]:
    """Continue from the newest intact checkpoint, as `python -m workers.engine train` does."""
    kept = out / "checkpoints"
    options = {"resume_from": checkpoints.find_newest(kept, record), "checkpoint_dir": kept} | options
    return train(specs, out, report=record, **options)


def assert_equal_runs(whole: Run, resumed: Run) -> None:
    assert resumed[2].keys() == whole[2].keys()
    for key, points in whole[2].items():
        assert list(resumed[2][key]) == list(points), key
        assert resumed[2][key] == pytest.approx(points, abs=1e-6), key
    for mine, theirs in zip(resumed[1], whole[1], strict=True):
        assert (mine.outcome, mine.step) == (theirs.outcome, theirs.step)
        for name in COUNTED:
            assert mine.summary[name] == pytest.approx(theirs.summary[name], abs=1e-6), name
        expected, found = tensors(whole[0], mine.arm), tensors(resumed[0], mine.arm)
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[name], expected[name], rtol=0, atol=1e-6) for name in expected)


@pytest.fixture(scope="module")
def one(base: BaseSpec, data: DataSpec) -> list[TrainSpec]:
    """An arm whose schedule, dropout and second epoch would all show a wrong position."""
    make = spec_maker(base, data)
    return [make(max_steps=12, lora_dropout=0.2, validation_steps=3, weight_decay=0.1)]


@pytest.fixture(scope="module")
def two(base: BaseSpec, data: DataSpec, one: list[TrainSpec]) -> list[TrainSpec]:
    make = spec_maker(base, data)
    return [*one, make(name="two", seed=7, r=2, max_steps=8, lora_dropout=0.1, validation_steps=4)]


def run_whole(specs: list[TrainSpec], out: Path) -> Run:
    record = Recorder()
    return out, train(specs, out, report=record), curves(record)


@pytest.fixture(scope="module")
def whole(one: list[TrainSpec], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of one arm, uninterrupted."""
    return run_whole(one, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def whole_two(two: list[TrainSpec], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of both arms, uninterrupted."""
    return run_whole(two, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(("kills", "seconds"), [([1], 180.0), ([12], 0.0), ([2, 4, 7, 10, 11], 180.0)])
def test_resumed_run_equals_uninterrupted_run(
    one: list[TrainSpec], whole: Run, tmp_path: Path, kills: list[int], seconds: float
) -> None:
    lives: list[Recorder] = []
    for step in kills:
        lives.append(Fuse(step))
        with pytest.raises(Killed):
            run_on(one, tmp_path / "cut", lives[-1], checkpoint_seconds=seconds)
    lives.append(Recorder())
    resumed = run_on(one, tmp_path / "cut", lives[-1], checkpoint_seconds=seconds)
    assert_equal_runs(whole, (tmp_path / "cut", resumed, curves(*lives)))


@pytest.mark.parametrize(
    ("arm", "step", "name"),
    [(0, 5, "train/loss"), (1, 4, "validation/loss"), (0, 10, "train/loss")],
)
def test_two_resumed_arms_equal_uninterrupted_arms(
    two: list[TrainSpec], whole_two: Run, tmp_path: Path, arm: int, step: int, name: str
) -> None:
    fuse, rest = Fuse(step, arm, name), Recorder()
    with pytest.raises(Killed):
        run_on(two, tmp_path / "cut", fuse)
    resumed = run_on(two, tmp_path / "cut", rest)
    assert_equal_runs(whole_two, (tmp_path / "cut", resumed, curves(fuse, rest)))


@pytest.mark.parametrize("looks", [20, 38, 65])
def test_drain_within_a_step_loses_nothing(
    two: list[TrainSpec], whole_two: Run, tmp_path: Path, looks: int
) -> None:
    first, rest = Recorder(), Recorder()
    left = [looks]

    def should_stop() -> str:
        left[0] -= 1
        return "drain" if left[0] < 0 and first.series("train/loss") else ""

    with pytest.raises(Stopped):
        run_on(two, tmp_path / "cut", first, should_stop=should_stop)
    resumed = run_on(two, tmp_path / "cut", rest)
    steps = [(event.arm, event.step) for event in first.of(Metrics) if "train/loss" in event.values]
    again = [(event.arm, event.step) for event in rest.of(Metrics) if "train/loss" in event.values]
    assert again[: len(steps)] == steps, "told again from the checkpoint, not trained again"
    assert len(set(again)) == len(again)
    assert_equal_runs(whole_two, (tmp_path / "cut", resumed, curves(first, rest)))


def test_resume_reports_its_first_step(one: list[TrainSpec], tmp_path: Path, record: Recorder) -> None:
    with pytest.raises(Killed):
        run_on(one, tmp_path, Fuse(8))
    run_on(one, tmp_path, record)
    assert "Continues from step 6." in [event.text for event in record.of(Message)]
    first = next(event for event in record.of(Progress) if event.phase == "training")
    assert (first.step, first.total) == (6, 12)


def test_resumed_finished_run_only_saves_again(
    one: list[TrainSpec], tmp_path: Path, record: Recorder
) -> None:
    run_on(one, tmp_path, Recorder())
    before = tensors(tmp_path)
    run_on(one, tmp_path, record)
    assert "Continues from step 12." in [event.text for event in record.of(Message)]
    assert all(torch.equal(value, before[name]) for name, value in tensors(tmp_path).items())
    validations = [event.step for event in record.of(Metrics) if "validation/loss" in event.values]
    assert validations == [0, 3, 6, 9, 12], "told again, not measured again"


def test_checkpoint_after_each_validation_and_two_are_kept(
    one: list[TrainSpec], tmp_path: Path, record: Recorder
) -> None:
    run_on(one, tmp_path, record)
    assert [event.step for event in record.of(Checkpoint)] == [3, 6, 9, 12]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [event.path for event in record.of(Checkpoint)][-2:]
    newest = tmp_path / "checkpoints" / kept[-1]
    assert {path.suffix for path in newest.iterdir()} == {".json", ".safetensors"}
    manifest = json.loads((newest / "manifest.json").read_text())
    assert set(manifest["files"]) == {"arm0.safetensors", "state.json"}


def test_checkpoints_are_written_by_time(one: list[TrainSpec], tmp_path: Path, record: Recorder) -> None:
    run_on([replace(one[0], validation_rows=0)], tmp_path, record, checkpoint_seconds=0.0)
    assert [event.step for event in record.of(Checkpoint)] == list(range(1, 13))


def test_failed_arm_stays_failed_after_resume(
    two: list[TrainSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse, rest = Fuse(7), Recorder()
    real = loss.Scorer.training_loss

    def poisoned(self: Any, batch: Any, labelled: int) -> tuple[torch.Tensor, torch.Tensor]:
        lost = self.model.active_adapter == "arm1" and len(fuse.series("train/loss", 1)) == 1
        step_loss, correct = real(self, batch, labelled)
        return step_loss * (math.nan if lost else 1.0), correct

    with monkeypatch.context() as poison:
        poison.setattr(loss.Scorer, "training_loss", poisoned)
        with pytest.raises(Killed):
            run_on(two, tmp_path, fuse)
    ends = run_on(two, tmp_path, rest)
    assert [(end.outcome, end.code, end.step) for end in ends] == [
        ("succeeded", "", 12),
        ("failed", "diverged", 2),
    ]
    assert rest.of(ArmEnd)[0] == fuse.of(ArmEnd)[0], (
        "told again: the parent may have died before it was stored"
    )


@pytest.mark.parametrize("name", ["arm0.safetensors", "state.json", "manifest.json"])
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    one: list[TrainSpec], whole: Run, tmp_path: Path, record: Recorder, name: str
) -> None:
    fuse, cut = Fuse(11), tmp_path / "cut"
    with pytest.raises(Killed):
        run_on(one, cut, fuse)
    damaged = max((cut / "checkpoints").iterdir()) / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    resumed = run_on(one, cut, record)
    told = [event.text for event in record.of(Message)]
    assert "The newest checkpoint is damaged, so the one before it is tried." in told
    assert "Continues from step 6." in told
    assert_equal_runs(whole, (cut, resumed, curves(fuse, record)))


def test_run_restarts_without_intact_checkpoint(
    one: list[TrainSpec], tmp_path: Path, record: Recorder
) -> None:
    with pytest.raises(Killed):
        run_on(one, tmp_path, Fuse(7))
    for manifest in (tmp_path / "checkpoints").glob("*/manifest.json"):
        manifest.unlink()
    run_on(one, tmp_path, record)
    assert "No checkpoint is intact, so the run starts again from step 0." in [
        event.text for event in record.of(Message)
    ]
    assert len(record.series("train/loss")) == 12


def test_unfinished_checkpoint_is_removed(one: list[TrainSpec], tmp_path: Path, record: Recorder) -> None:
    half = tmp_path / "checkpoints" / ".writing-1"
    half.mkdir(parents=True)
    (half / "state.json").write_text("{")
    assert checkpoints.find_newest(tmp_path / "checkpoints", record) is None
    assert not half.exists()
    assert not record


@pytest.fixture(scope="module")
def killed(one: list[TrainSpec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run that was killed."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.raises(Killed):
        run_on(one, folder, Fuse(5))
    return folder / "checkpoints"


@pytest.fixture
def cut_off(killed: Path, tmp_path: Path) -> Path:
    """The only checkpoint of that run, which a test may damage."""
    (only,) = shutil.copytree(killed, tmp_path / "cut" / "checkpoints").iterdir()
    return only


def test_damaged_resume_from_is_refused(one: list[TrainSpec], tmp_path: Path, cut_off: Path) -> None:
    (cut_off / "state.json").unlink()
    with pytest.raises(RunError, match="damaged"):
        train(one, tmp_path / "out", report=Recorder(), resume_from=cut_off)


def test_failed_write_is_retried(
    one: list[TrainSpec], tmp_path: Path, record: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "save_file", raising(save_file, "ENOSPC", at=[2]))
    run_on(one, tmp_path, record)
    assert [event.step for event in record.of(Checkpoint)] == [3, 6, 9, 12]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000003", "000004"]


def test_full_disk_fails_the_run_and_keeps_the_last_checkpoint(
    one: list[TrainSpec], tmp_path: Path, record: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(checkpoints, "save_file", raising(save_file, "ENOSPC", at=[3, 4]))
        with pytest.raises(DiskFull, match="The disk is full"):
            run_on(one, tmp_path, record)
    assert [event.step for event in record.of(Checkpoint)] == [3, 6]
    # The older one made room for the second try.
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000002"]
    (end,) = run_on(one, tmp_path, record)
    assert "Continues from step 6." in [event.text for event in record.of(Message)]
    assert end.outcome == "succeeded"


def test_drain_on_full_disk_keeps_the_checkpoint_before(
    one: list[TrainSpec], tmp_path: Path, record: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "save_file", raising(save_file, "ENOSPC", at=[2, 3]))
    with pytest.raises(Stopped):
        run_on(
            one,
            tmp_path,
            record,
            should_stop=lambda: "drain" if len(record.series("train/loss")) == 5 else "",
        )
    assert [event.step for event in record.of(Checkpoint)] == [3]
    assert "No checkpoint could be written before the stop" in record.of(Message)[-1].text


def test_only_the_latest_damaged_checkpoint_is_kept(
    one: list[TrainSpec], tmp_path: Path, record: Recorder
) -> None:
    run_on(one, tmp_path, Recorder())
    kept, long_ago = tmp_path / "checkpoints", time.time() - 30 * 86400
    for name in ("000004", "000003"):
        (kept / name / "state.json").write_text("{")
        os.utime(kept / name, (long_ago, long_ago))
        checkpoints.find_newest(kept, record)
    (damaged,) = kept.iterdir()
    assert damaged.name == "damaged-000003"
    assert time.time() - damaged.stat().st_mtime < 3600


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "arm0.safetensors"])
def test_unreadable_disk_is_no_damage(
    cut_off: Path, record: Recorder, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    real = Path.open

    def refuse(path: Path, *options: Any, **more: Any) -> Any:
        if path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *options, **more)

    before = sorted(cut_off.parent.rglob("*"))
    with monkeypatch.context() as broken:
        broken.setattr(Path, "open", refuse)
        with pytest.raises(CheckpointUnreadable) as caught:
            checkpoints.find_newest(cut_off.parent, record)
    assert (failure(caught.value).code, record) == ("checkpoint_unreadable", [])
    assert os.strerror(number) in caught.value.message
    assert sorted(cut_off.parent.rglob("*")) == before, "nothing was put aside"
    assert checkpoints.find_newest(cut_off.parent, record) == cut_off


def test_checkpoint_is_read_without_pickle(
    one: list[TrainSpec], cut_off: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", lambda *_a, **_k: pytest.fail("torch.load was called"))
    assert checkpoints.load(cut_off).state["step"] == 3
