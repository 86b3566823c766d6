"""Wherever the engine dies or the disk is full: a complete adapter or none, and the next attempt ends well.

The walks interrupt a training at its moments (see `tests/moments.py`), one after the other: some of them, or
with `CHAOS_WALK=all` each. The short one takes those at which most has gone wrong elsewhere.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.conftest import Recorder
from tests.engine.life import FULL, Story
from tests.moments import Interruption
from tests.tiny_model import colour_rows, tiny_base, tiny_target, write_canonical
from workers.contract import checkpoint_ownership
from workers.contract.events import Artifact, Event, Metrics
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import TrainSpec
from workers.engine.training.artifacts import file_sha256
from workers.engine.training.train import train

WHOLE = os.environ.get("CHAOS_WALK") == "all"
# Without CHAOS_WALK=all every so manieth moment; primes, so that the same ones of a checkpoint do not recur.
KILL_STRIDE, ERROR_STRIDE = (1, 1) if WHOLE else (11, 17)
ERRORS = ("ENOSPC", "EIO") if WHOLE else ("ENOSPC",)
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
def story(specs: list[TrainSpec], tmp_path: Path) -> Story:
    return Story(specs, tmp_path / "story")


def curve(events: Sequence[Event], arm: int, name: str) -> dict[int, float]:
    """Later points over earlier ones, as the database keeps them."""
    found = [event for event in events if isinstance(event, Metrics) and event.arm == arm]
    return {event.step: event.values[name] for event in found if name in event.values}


def adapters(folder: Path) -> Iterator[Path]:
    return folder.glob("attempt-*/arm-*/adapter")


def assert_complete_or_none(story: Story) -> None:
    """An adapter folder that can be seen has every file, and the weights can be read."""
    told = {event.path: event for event in story.events.of(Artifact)}
    for folder in adapters(story.folder):
        assert len(list(folder.iterdir())) == 7, folder
        assert load_file(folder / "adapter_model.safetensors")
        event = told.get(folder.relative_to(folder.parents[1]).as_posix())
        if event and folder.is_relative_to(story.out):
            assert event.files == {path.name: file_sha256(path) for path in folder.iterdir()}


def assert_as_if_nothing_had_happened(story: Story, whole: tuple[Path, Recorder]) -> None:
    assert_complete_or_none(story)
    for arm, steps in ((0, 6), (1, 4)):
        assert (story.end(arm).outcome, story.end(arm).step) == ("succeeded", steps)
        for name in ("train/loss", "validation/loss"):
            assert curve(story.events, arm, name) == pytest.approx(curve(whole[1], arm, name), abs=1e-6)
        saved = [path for path in adapters(story.folder) if path.parent.name == f"arm-{arm}"]
        expected = load_file(whole[0] / f"arm-{arm}/adapter/adapter_model.safetensors")
        for folder in saved:
            found = load_file(folder / "adapter_model.safetensors")
            assert all(torch.allclose(found[name], expected[name], rtol=0, atol=1e-6) for name in expected)
    left = sorted(
        path.name for path in story.checkpoints.iterdir() if path.name != checkpoint_ownership.OWNER
    )
    assert len(left) == 2, left
    assert all(name.isdigit() for name in left), left


@pytest.mark.parametrize("moment", SHORT_WALK)
def test_next_attempt_continues_after_kill(story: Story, whole: tuple[Path, Recorder], moment: str) -> None:
    assert story.live(Interruption(2, moment)) == -signal.SIGKILL
    assert_complete_or_none(story)
    assert story.live() == 0
    assert_as_if_nothing_had_happened(story, whole)


def test_checkpoint_being_removed_looks_like_none(story: Story) -> None:
    assert story.live(Interruption(1, r"remove \.gone")) == -signal.SIGKILL
    assert sum(path.name.isdigit() for path in story.checkpoints.iterdir()) == 2


@pytest.mark.slow
def test_training_survives_kill_at_every_moment(
    specs: list[TrainSpec], whole: tuple[Path, Recorder], tmp_path: Path
) -> None:
    for at in count(1, KILL_STRIDE):
        story = Story(specs, tmp_path / str(at))
        if story.live(Interruption(at)) == 0:
            break
        assert_complete_or_none(story)
        assert story.live() == 0, at
        assert_as_if_nothing_had_happened(story, whole)
    assert at > 140, "it has passed every write of a training"


@pytest.mark.slow
def test_death_at_each_checkpoint_repeats_no_step(story: Story, whole: tuple[Path, Recorder]) -> None:
    learned: list[set[int]] = []
    for status in [-signal.SIGKILL] * 5 + [0]:
        already = len(story.events)
        assert story.live(Interruption(1, "report Checkpoint") if status else None) == status
        reported = curve(story.events[already:], 0, "train/loss")
        learned.append(set(reported) - set().union(*learned))
    # One interval each, and then it dies as often where one arm's end is saved: nothing is learned again.
    assert learned == [{1, 2}, {3, 4}, set(), set(), set(), {5, 6}]
    assert_as_if_nothing_had_happened(story, whole)


def refuse(story: Story, whole: tuple[Path, Recorder], interruption: Interruption) -> bool:
    """Let the disk refuse once, then for good; returns False once there is no such write.

    A write that fails once is tried again, and nothing is lost. A full disk ends the run, which is resumable.
    """
    assert story.live(interruption) == 0
    assert_as_if_nothing_had_happened(story, whole)
    full = Story(story.specs, story.folder.with_name(f"{story.folder.name}-full"))
    if full.live(replace(interruption, lasts=True)) == 0:
        return False
    assert_complete_or_none(full)
    assert not list(full.folder.rglob(".*ing*")), "its own unfinished files are gone"
    assert full.live() == 0
    assert_as_if_nothing_had_happened(full, whole)
    return True


@pytest.mark.parametrize("moment", SHORT_WRITES)
def test_full_disk_leaves_complete_adapter_or_none(
    story: Story, whole: tuple[Path, Recorder], moment: str
) -> None:
    assert refuse(story, whole, Interruption(1, moment, "ENOSPC"))


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
def test_training_survives_refusal_of_every_write(
    specs: list[TrainSpec], whole: tuple[Path, Recorder], tmp_path: Path, error: str
) -> None:
    # What is renamed to be removed needs no room.
    for at in count(1, ERROR_STRIDE):
        if not refuse(Story(specs, tmp_path / str(at)), whole, Interruption(at, r"(?!rename \.gone)", error)):
            break
    assert at > 80, "it has passed every write of a training"


@pytest.mark.parametrize("limit", [2_000, 9_000])
def test_file_size_limit_is_a_full_disk(story: Story, whole: tuple[Path, Recorder], limit: int) -> None:
    """Not injected: the system itself refuses the write, in Python and in the library that writes tensors."""
    assert story.live(limit=limit) == FULL
    assert_complete_or_none(story)
    assert story.live() == 0
    assert_complete_or_none(story)
