"""Wherever the engine dies or the disk is full: a complete adapter or none, and the next attempt ends well.

Faults are injected at disk operations (see `tests/moments.py`): at those that fail most often elsewhere, and
in the proofs at each.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.conftest import Recorder
from tests.engine.life import DISK_FULL, Training
from tests.moments import Interruption
from tests.tiny_model import colour_rows, tiny_base, tiny_target, write_canonical
from workers.contract import checkpoint_ownership
from workers.contract.events import Artifact, Event, Metrics
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import TrainSpec
from workers.engine.training.artifacts import file_sha256
from workers.engine.training.train import train

SHORT_WALK = (r"rename 0000", "fsync manifest.json", "fsync arm-", "report ArmEnd")
SHORT_WRITES = ("open state.json", "open adapter_config.json")


@pytest.fixture(scope="module")
def specs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TrainSpec]:
    """Two arms, one of which is done before the other."""
    learn = Hyperparameters(
        r=4, learning_rate=1e-2, max_steps=6, per_device_train_batch_size=4, lora_dropout=0.2
    )
    data = write_canonical(tmp_path_factory.mktemp("death") / "data", colour_rows())
    first = TrainSpec(
        name="long",
        base=tiny_base(tiny_folder),
        data=data,
        target=tiny_target(4),
        hyperparameters=learn,
        validation_steps=2,
        dtype="float32",
    )
    other = replace(learn, r=2, lora_alpha=4, seed=7, max_steps=4)
    return [first, replace(first, name="short", target=tiny_target(2), hyperparameters=other)]


@pytest.fixture(scope="module")
def whole(specs: list[TrainSpec], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """The same run, uninterrupted."""
    out, record = tmp_path_factory.mktemp("whole"), Recorder()
    train(specs, out, report=record)
    return out, record


@pytest.fixture
def training(specs: list[TrainSpec], tmp_path: Path) -> Training:
    return Training(specs, tmp_path / "training")


def curve(events: Sequence[Event], arm: int, name: str) -> dict[int, float]:
    """Later points over earlier ones, as the database keeps them."""
    found = [event for event in events if isinstance(event, Metrics) and event.arm == arm]
    return {event.step: event.values[name] for event in found if name in event.values}


def adapters(folder: Path) -> Iterator[Path]:
    return folder.glob("attempt-*/arm-*/adapter")


def assert_complete_or_none(training: Training) -> None:
    """An adapter folder that can be seen has every file, and the weights can be read."""
    told = {event.path: event for event in training.events.of(Artifact)}
    for folder in adapters(training.folder):
        assert len(list(folder.iterdir())) == 7, folder
        assert load_file(folder / "adapter_model.safetensors")
        event = told.get(folder.relative_to(folder.parents[1]).as_posix())
        if event and folder.is_relative_to(training.out):
            assert event.files == {path.name: file_sha256(path) for path in folder.iterdir()}


def assert_as_if_nothing_had_happened(training: Training, whole: tuple[Path, Recorder]) -> None:
    assert_complete_or_none(training)
    for arm, steps in ((0, 6), (1, 4)):
        assert (training.end(arm).outcome, training.end(arm).step) == ("succeeded", steps)
        for name in ("train/loss", "validation/loss"):
            assert curve(training.events, arm, name) == pytest.approx(curve(whole[1], arm, name), abs=1e-6)
        saved = [path for path in adapters(training.folder) if path.parent.name == f"arm-{arm}"]
        expected = load_file(whole[0] / f"arm-{arm}/adapter/adapter_model.safetensors")
        for folder in saved:
            found = load_file(folder / "adapter_model.safetensors")
            assert all(torch.allclose(found[name], expected[name], rtol=0, atol=1e-6) for name in expected)
    left = sorted(
        path.name for path in training.checkpoints.iterdir() if path.name != checkpoint_ownership.OWNER
    )
    assert len(left) == 2, left
    assert all(name.isdigit() for name in left), left


@pytest.mark.parametrize("operation", SHORT_WALK)
def test_next_attempt_continues_after_kill(
    training: Training, whole: tuple[Path, Recorder], operation: str
) -> None:
    assert training.run_attempt(Interruption(2, operation)) == -signal.SIGKILL
    assert_complete_or_none(training)
    assert training.run_attempt() == 0
    assert_as_if_nothing_had_happened(training, whole)


def test_checkpoint_being_removed_looks_like_none(training: Training) -> None:
    assert training.run_attempt(Interruption(1, r"remove \.gone")) == -signal.SIGKILL
    assert sum(path.name.isdigit() for path in training.checkpoints.iterdir()) == 2


@pytest.mark.proof
def test_training_survives_kill_at_every_operation(
    specs: list[TrainSpec], whole: tuple[Path, Recorder], tmp_path: Path
) -> None:
    for at in count(1):
        training = Training(specs, tmp_path / str(at))
        if training.run_attempt(Interruption(at)) == 0:
            break
        assert_complete_or_none(training)
        assert training.run_attempt() == 0, at
        assert_as_if_nothing_had_happened(training, whole)
    assert at > 140, "it has passed every write of a training"


@pytest.mark.slow
def test_death_at_each_checkpoint_repeats_no_step(training: Training, whole: tuple[Path, Recorder]) -> None:
    learned: list[set[int]] = []
    for status in [-signal.SIGKILL] * 5 + [0]:
        already = len(training.events)
        assert training.run_attempt(Interruption(1, "report Checkpoint") if status else None) == status
        reported = curve(training.events[already:], 0, "train/loss")
        learned.append(set(reported) - set().union(*learned))
    # One interval each, and then it dies as often where one arm's end is saved: nothing is learned again.
    assert learned == [{1, 2}, {3, 4}, set(), set(), set(), {5, 6}]
    assert_as_if_nothing_had_happened(training, whole)


def refuse(training: Training, whole: tuple[Path, Recorder], interruption: Interruption) -> bool:
    """Let the disk refuse once, then for good; returns False once there is no such write.

    A write that fails once is tried again, and nothing is lost. A full disk ends the run, which is resumable.
    """
    assert training.run_attempt(interruption) == 0
    assert_as_if_nothing_had_happened(training, whole)
    full = Training(training.specs, training.folder.with_name(f"{training.folder.name}-full"))
    if full.run_attempt(replace(interruption, lasts=True)) == 0:
        return False
    assert_complete_or_none(full)
    assert not list(full.folder.rglob(".*ing*")), "its own unfinished files are gone"
    assert full.run_attempt() == 0
    assert_as_if_nothing_had_happened(full, whole)
    return True


@pytest.mark.parametrize("operation", SHORT_WRITES)
def test_full_disk_leaves_complete_adapter_or_none(
    training: Training, whole: tuple[Path, Recorder], operation: str
) -> None:
    assert refuse(training, whole, Interruption(1, operation, "ENOSPC"))


@pytest.mark.proof
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_training_survives_refusal_of_every_write(
    specs: list[TrainSpec], whole: tuple[Path, Recorder], tmp_path: Path, error: str
) -> None:
    # What is renamed to be removed needs no room.
    for at in count(1):
        if not refuse(
            Training(specs, tmp_path / str(at)), whole, Interruption(at, r"(?!rename \.gone)", error)
        ):
            break
    assert at > 80, "it has passed every write of a training"


@pytest.mark.parametrize("limit", [2_000, 9_000])
def test_file_size_limit_is_a_full_disk(training: Training, whole: tuple[Path, Recorder], limit: int) -> None:
    """Not injected: the system itself refuses the write, in Python and in the library that writes tensors."""
    assert training.run_attempt(limit=limit) == DISK_FULL
    assert_complete_or_none(training)
    assert training.run_attempt() == 0
    assert_complete_or_none(training)
