"""Wherever the engine dies or the disk is full: a complete adapter or none, and the next attempt ends well.

The long walk passes every point once; with `CHAOS_WALK=all` also at its second time, and with each error of a
disk. The short one passes those at which most has gone wrong elsewhere.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.conftest import Recorder
from tests.engine.life import FULL, Story
from tests.tiny_model import colour_rows, tiny_base, tiny_target, write_canonical
from workers import faults, handover
from workers.engine.artifacts import file_sha256
from workers.engine.train import train
from workers.events import Artifact, Event, Metrics
from workers.hyperparameters import Hyperparameters
from workers.specs import TrainSpec

ENGINE = ("train.", "checkpoint.", "save.")
POINTS = sorted(name for name in faults.POINTS if name.startswith(ENGINE))
WRITES = sorted(name for name in faults.WRITES if name.startswith(ENGINE))
WHOLE = os.environ.get("CHAOS_WALK") == "all"
TIMES = (1, 2) if WHOLE else (1,)
ERRORS = ("ENOSPC", "EIO") if WHOLE else ("ENOSPC",)
SHORT_WALK = ("checkpoint.rename", "checkpoint.after_manifest", "save.after_rename", "save.before_end")
SHORT_WRITES = ("checkpoint.write_arm", "save.write_weights")


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
    left = sorted(path.name for path in story.checkpoints.iterdir() if path.name != handover.HOLDER)
    assert len(left) == 2, left
    assert all(name.isdigit() for name in left), left


def die_and_go_on(story: Story, whole: tuple[Path, Recorder], name: str, time: int) -> None:
    assert story.live(f"{name}=kill@{time}") == -signal.SIGKILL
    assert_complete_or_none(story)
    assert story.live() == 0
    assert_as_if_nothing_had_happened(story, whole)


@pytest.mark.parametrize("name", SHORT_WALK)
def test_the_next_attempt_goes_on_where_the_engine_was_killed(
    story: Story, whole: tuple[Path, Recorder], name: str
) -> None:
    die_and_go_on(story, whole, name, 2)


def test_what_is_being_removed_looks_like_no_checkpoint(story: Story) -> None:
    assert story.live("checkpoint.while_forgetting=kill@1") == -signal.SIGKILL
    assert sum(path.name.isdigit() for path in story.checkpoints.iterdir()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("name", POINTS)
def test_it_may_be_killed_at_every_point(
    story: Story, whole: tuple[Path, Recorder], name: str, time: int
) -> None:
    once = ("checkpoint.while_forgetting", "checkpoint.write_holder")
    die_and_go_on(story, whole, name, 1 if name in once else time)


@pytest.mark.slow
def test_a_death_at_each_checkpoint_costs_no_step_twice_over(
    story: Story, whole: tuple[Path, Recorder]
) -> None:
    taken: list[set[int]] = []
    for status in [-signal.SIGKILL] * 5 + [0]:
        already = len(story.events)
        assert story.live("checkpoint.before_report=kill" if status else "") == status
        told = curve(story.events[already:], 0, "train/loss")
        taken.append(set(told) - set().union(*taken))
    # One interval each, and then it dies as often where one arm's end is saved: nothing is learned again.
    assert taken == [{1, 2}, {3, 4}, set(), set(), set(), {5, 6}]
    assert_as_if_nothing_had_happened(story, whole)


def refuse(story: Story, whole: tuple[Path, Recorder], name: str, error: str) -> None:
    """Once: it is tried again and nothing is lost. Each time: the run ends and can go on later."""
    assert story.live(f"{name}={error}@1") == 0
    assert_as_if_nothing_had_happened(story, whole)
    stubborn = Story(story.specs, story.folder.with_name("stubborn"))
    assert stubborn.live(f"{name}={error}") == FULL
    assert_complete_or_none(stubborn)
    assert not list(stubborn.folder.rglob(".*ing*")), "its own unfinished files are gone"
    assert stubborn.live() == 0
    assert_as_if_nothing_had_happened(stubborn, whole)


@pytest.mark.parametrize("name", SHORT_WRITES)
def test_a_full_disk_leaves_a_complete_adapter_or_none(
    story: Story, whole: tuple[Path, Recorder], name: str
) -> None:
    refuse(story, whole, name, "ENOSPC")


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", WRITES)
def test_the_disk_may_refuse_every_write(
    story: Story, whole: tuple[Path, Recorder], name: str, error: str
) -> None:
    refuse(story, whole, name, error)


@pytest.mark.parametrize("limit", [2_000, 9_000])
def test_a_limit_on_the_size_of_a_file_is_a_full_disk(
    story: Story, whole: tuple[Path, Recorder], limit: int
) -> None:
    """Not injected: the system itself refuses the write, in Python and in the library that writes tensors."""
    assert story.live(limit=limit) == FULL
    assert_complete_or_none(story)
    assert story.live() == 0
    assert_complete_or_none(story)
