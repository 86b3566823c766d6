"""One arm of several that a person stops: it ends before its next step, and moves no number of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.conftest import Recorder
from tests.engine.test_stops import Asker, assert_equal, weights
from workers.engine import checkpoints, lora
from workers.engine.__main__ import StopFlag
from workers.engine.train import train
from workers.errors import Stopped
from workers.events import ArmEnd, Artifact, Message, Progress
from workers.specs import TrainSpec

SERIES = ("train/loss", "train/grad_norm", "train/learning_rate", "validation/loss")
MakeSpec = Callable[..., TrainSpec]


class Person(Recorder):
    """Keeps events, and asks for the end of one arm once it has done so many steps."""

    def __init__(self, arm: int, reason: str, steps: int) -> None:
        super().__init__()
        self.arm, self.reason, self.steps = arm, reason, steps

    def should_stop_arm(self, arm: int) -> str:
        done = len(self.series("train/loss", arm))
        return self.reason if arm == self.arm and done >= self.steps else ""


@pytest.fixture
def specs(make_spec: MakeSpec) -> list[TrainSpec]:
    """Three arms; the one in the middle draws dropout and trains for longest."""
    return [
        make_spec(name="first", seed=1, max_steps=8),
        make_spec(name="middle", seed=2, r=2, lora_alpha=8, lora_dropout=0.1, max_steps=40),
        make_spec(name="last", seed=3, lora_dropout=0.2, max_steps=9),
    ]


@pytest.mark.parametrize("reason", ["cancel", "finish"])
def test_the_others_end_equal_to_a_job_in_which_it_had_ended_there(
    specs: list[TrainSpec], tmp_path: Path, reason: str
) -> None:
    person, alone = Person(1, reason, 4), Recorder()
    ends = train(specs, tmp_path / "beside", report=person, should_stop_arm=person.should_stop_arm)
    train([specs[0], specs[2]], tmp_path / "alone", report=alone)
    outcome = {"cancel": "cancelled", "finish": "stopped_early"}[reason]
    assert [(end.outcome, end.step) for end in ends] == [("succeeded", 8), (outcome, 4), ("succeeded", 9)]
    for there, here in ((0, 0), (2, 1)):
        for name in SERIES:
            assert person.series(name, there) == alone.series(name, here)
        assert_equal(weights(tmp_path / "beside", there), weights(tmp_path / "alone", here))
    # And equal to a job in which its last step was this one.
    short = replace(specs[1], hyperparameters=replace(specs[1].hyperparameters, max_steps=4))
    until = Recorder()
    train([specs[0], short, specs[2]], tmp_path / "until", report=until)
    for arm in (0, 2):
        for name in SERIES:
            assert person.series(name, arm) == until.series(name, arm)
        assert_equal(weights(tmp_path / "beside", arm), weights(tmp_path / "until", arm))


def test_it_is_told_once_and_leaves_no_adapter(specs: list[TrainSpec], tmp_path: Path) -> None:
    person = Person(0, "cancel", 3)
    train(specs, tmp_path, report=person, should_stop_arm=person.should_stop_arm)
    assert [(end.arm, end.step) for end in person.of(ArmEnd) if end.outcome == "cancelled"] == [(0, 3)]
    assert len(person.series("train/loss", 0)) == 3
    assert sorted(event.arm for event in person.of(Artifact)) == [1, 2]
    assert not (tmp_path / "arm-0").exists()
    assert "first was stopped after step 3, as asked." in [event.text for event in person.of(Message)]


def test_to_keep_its_best_publishes_the_weights_it_had_then(specs: list[TrainSpec], tmp_path: Path) -> None:
    specs[1] = replace(specs[1], validation_rows=0)
    person = Person(1, "finish", 5)
    ends = train(specs, tmp_path / "out", report=person, should_stop_arm=person.should_stop_arm)
    assert (ends[1].outcome, ends[1].summary["published_step"]) == ("stopped_early", 5)
    alone = Asker("finish", 5)
    train([specs[1]], tmp_path / "alone", report=alone, should_stop=alone.should_stop)
    assert_equal(weights(tmp_path / "out", 1), weights(tmp_path / "alone"))


def test_before_its_first_step_there_is_nothing_to_keep(specs: list[TrainSpec], tmp_path: Path) -> None:
    person = Person(1, "finish", 0)
    ends = train(specs, tmp_path, report=person, should_stop_arm=person.should_stop_arm)
    assert [(end.outcome, end.step) for end in ends] == [("succeeded", 8), ("cancelled", 0), ("succeeded", 9)]
    assert not person.series("train/loss", 1)


def test_the_steps_to_come_are_those_of_the_arms_that_train_on(
    specs: list[TrainSpec], tmp_path: Path
) -> None:
    person = Person(1, "cancel", 2)
    train(specs, tmp_path, report=person, should_stop_arm=person.should_stop_arm)
    told = [(event.step, event.total) for event in person.of(Progress) if event.phase == "training"]
    assert told[0] == (0, 40)
    assert told[-1] == (9, 9)
    assert all(step <= total for step, total in told)


def test_when_each_arm_is_stopped_nothing_is_left_to_train(specs: list[TrainSpec], tmp_path: Path) -> None:
    record = Recorder()
    ends = train(
        specs,
        tmp_path,
        report=record,
        should_stop_arm=lambda arm: "cancel" if len(record.series("train/loss", arm)) >= 2 else "",
    )
    assert [(end.outcome, end.step) for end in ends] == [("cancelled", 2)] * 3
    told = [event.step for event in record.of(Progress) if event.phase == "training"]
    assert max(told) <= 2


def test_whoever_continues_a_job_carries_out_the_wish_again(specs: list[TrainSpec], tmp_path: Path) -> None:
    """Killed after the arm had ended and before anybody stored that: the same weights are saved again."""
    person, kept = Person(1, "finish", 4), tmp_path / "checkpoints"

    def drain_later() -> str:
        return "drain" if len(person.series("train/loss", 0)) >= 6 else ""

    with pytest.raises(Stopped):
        train(
            specs,
            tmp_path / "out",
            report=person,
            should_stop=drain_later,
            should_stop_arm=person.should_stop_arm,
            checkpoint_dir=kept,
        )
    before = weights(tmp_path / "out", 1)
    record = Recorder()
    ends = train(
        specs,
        tmp_path / "again",
        report=record,
        should_stop_arm=lambda arm: "finish" if arm == 1 else "",
        resume_from=checkpoints.newest(kept, record),
        checkpoint_dir=kept,
    )
    assert [(end.outcome, end.step) for end in ends] == [
        ("succeeded", 8),
        ("stopped_early", 4),
        ("succeeded", 9),
    ]
    assert_equal(weights(tmp_path / "again", 1), before)
    train(specs, tmp_path / "whole", report=Recorder())
    for arm in (0, 2):
        assert_equal(weights(tmp_path / "again", arm), weights(tmp_path / "whole", arm))


def test_saving_the_best_leaves_the_present_weights_in_the_checkpoint(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    """Should its publishing fail, the arm is continued from where it stood."""
    wild = make_spec(
        name="wild", learning_rate=0.05, lr_scheduler_type="constant", max_steps=40, validation_steps=2
    )
    person, kept = Person(0, "finish", 5), tmp_path / "checkpoints"
    (end, _other) = train(
        [wild, make_spec(name="other", max_steps=8, validation_steps=4)],
        tmp_path / "out",
        report=person,
        should_stop_arm=person.should_stop_arm,
        checkpoint_dir=kept,
    )
    assert end.summary["published_step"] == 4 != end.step, "else this test shows nothing"
    alone = replace(wild, validation_rows=0)
    asker = Asker("finish", 5)
    train([alone], tmp_path / "present", report=asker, should_stop=asker.should_stop)
    newest = checkpoints.newest(kept, person)
    assert newest
    stored = load_file(newest / f"{lora.arm_name(0)}.safetensors")
    present = sorted(weights(tmp_path / "present").values(), key=lambda one: float(one.sum()))
    found = sorted(
        (value for name, value in stored.items() if name.endswith(".weight")),
        key=lambda one: float(one.sum()),
    )
    assert all(torch.equal(one, other) for one, other in zip(found, present, strict=True))


def test_the_stronger_wish_for_an_arm_wins_whatever_comes_last() -> None:
    for order in (("finish", "cancel"), ("cancel", "finish")):
        flag = StopFlag()
        for reason in order:
            flag.ask_arm(2, reason)
        assert (flag.of_arm(2), flag.of_arm(1), flag()) == ("cancel", "", "")
    flag.ask_arm(1, "drain")
    assert flag.of_arm(1) == "", "only a whole job is drained or parked"
