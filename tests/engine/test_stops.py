"""Reasons to stop and what each keeps: nothing, a checkpoint, or the best adapter so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.conftest import Recorder
from tests.tiny_model import chat, colour_rows, write_canonical
from workers.contract.errors import Stopped
from workers.contract.events import STOPS, ArmEnd, Artifact, Checkpoint, Event, Message, Metrics
from workers.contract.specs import TrainSpec
from workers.engine.__main__ import StopFlag
from workers.engine.training import checkpoints
from workers.engine.training.train import train

MakeSpec = Callable[..., TrainSpec]


class Asker(Recorder):
    """Keeps events, and asks for a stop once `arm` has done `steps` steps."""

    def __init__(self, reason: str, steps: int, arm: int = 0) -> None:
        super().__init__()
        self.reason, self.steps, self.arm = reason, steps, arm

    def should_stop(self) -> str:
        return self.reason if len(self.series("train/loss", self.arm)) >= self.steps else ""


def weights(out: Path, arm: int = 0) -> dict[str, torch.Tensor]:
    return load_file(out / f"arm-{arm}/adapter/adapter_model.safetensors")


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def run_until(reason: str, steps: int, spec: TrainSpec, out: Path) -> tuple[Asker, list[ArmEnd]]:
    asker = Asker(reason, steps)
    kept = out / "checkpoints"
    ends = train([spec], out, report=asker, should_stop=asker.should_stop, checkpoint_dir=kept)
    return asker, ends


@pytest.fixture
def rising(make_spec: MakeSpec, tmp_path: Path) -> TrainSpec:
    """Its held-out loss is best early: those rows have other answers than the ones it learns."""
    rows = colour_rows(8)
    wrong = [chat(row[0]["content"], "XYZ" * 9) for row in rows]
    data = write_canonical(tmp_path / "rising", rows, validation=wrong)
    learn = {"max_steps": 400, "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "learning_rate": 0.03}
    return make_spec(data=data, validation_steps=2, **learn)


def test_finish_saves_the_weights_with_the_lowest_validation_loss(rising: TrainSpec, tmp_path: Path) -> None:
    asker, (end,) = run_until("finish", 11, rising, tmp_path / "out")
    losses = dict(zip(range(0, 11, 2), asker.series("validation/loss"), strict=True))
    best = min(list(losses)[1:], key=losses.__getitem__)
    assert best < 10, "else this test shows nothing"
    assert (end.outcome, end.step) == ("stopped_early", 11)
    assert end.summary["published_step"] == best
    assert end.summary["validation_loss"] == losses[best]
    assert [event.arm for event in asker.of(Artifact)] == [0]
    # Trained up to that very step, the last weights are the same ones.
    until = replace(rising, hyperparameters=replace(rising.hyperparameters, max_steps=best))
    train([until], tmp_path / "until", report=Recorder())
    assert_equal(weights(tmp_path / "out"), weights(tmp_path / "until"))
    card = (tmp_path / "out/arm-0/adapter/README.md").read_text()
    assert f"| weights of | step {best} of 11 trained |" in card


def test_a_finished_run_saves_the_weights_with_the_lowest_validation_loss(
    rising: TrainSpec, tmp_path: Path
) -> None:
    whole = replace(rising, hyperparameters=replace(rising.hyperparameters, max_steps=10))
    record = Recorder()
    (end,) = train([whole], tmp_path / "out", report=record)
    losses = dict(zip(range(0, 11, 2), record.series("validation/loss"), strict=True))
    best = min(list(losses)[1:], key=losses.__getitem__)
    assert best < 10, "else this test shows nothing"
    assert (end.outcome, end.step, end.summary["published_step"]) == ("succeeded", 10, best)
    assert end.summary["validation_loss"] == losses[best]
    until = replace(rising, hyperparameters=replace(rising.hyperparameters, max_steps=best))
    train([until], tmp_path / "until", report=Recorder())
    assert_equal(weights(tmp_path / "out"), weights(tmp_path / "until"))


def test_finish_without_validation_saves_the_last_step(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(max_steps=50, validation_rows=0, lr_scheduler_type="constant")
    _asker, (end,) = run_until("finish", 3, spec, tmp_path / "out")
    assert (end.outcome, end.summary["published_step"], end.summary["validation_loss"]) == (
        "stopped_early",
        3,
        None,
    )


def test_finish_before_the_first_step_cancels(make_spec: MakeSpec, tmp_path: Path) -> None:
    for looks in (0, 3, 4):
        left, record = [looks], Recorder()

        def should_stop(left: list[int] = left) -> str:
            left[0] -= 1
            return "finish" if left[0] < 0 else ""

        with pytest.raises(Stopped) as caught:
            train(
                [make_spec(validation_rows=16, validation_steps=3)],
                tmp_path,
                report=record,
                should_stop=should_stop,
            )
        assert caught.value.reason == "cancel"
        assert not record.series("train/loss")
        assert not (tmp_path / "arm-0").exists()


def test_resumed_run_can_finish_at_once(rising: TrainSpec, tmp_path: Path, record: Recorder) -> None:
    """The best is older than the checkpoint from which it continues."""
    with pytest.raises(Stopped):
        run_until("park", 11, rising, tmp_path / "out")
    run_until("finish", 11, rising, tmp_path / "whole")
    kept = tmp_path / "out/checkpoints"
    (end,) = train(
        [rising],
        tmp_path / "out",
        report=record,
        should_stop=lambda: "finish",
        resume_from=checkpoints.find_newest(kept, record),
        checkpoint_dir=kept,
    )
    assert (end.outcome, end.step) == ("stopped_early", 11)
    steps = [event.step for event in record.of(Metrics) if "train/loss" in event.values]
    assert max(steps) == 11, "told again, not trained on"
    assert_equal(weights(tmp_path / "out"), weights(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("reason", "checkpoint_steps", "outcomes"),
    [("park", [4], []), ("drain", [4], []), ("cancel", [], ["cancelled"])],
)
def test_park_and_drain_leave_a_checkpoint_and_cancel_leaves_nothing(
    make_spec: MakeSpec, tmp_path: Path, reason: str, checkpoint_steps: list[int], outcomes: list[str]
) -> None:
    asker = Asker(reason, 4)
    with pytest.raises(Stopped) as caught:
        train(
            [make_spec(max_steps=50, validation_rows=0)],
            tmp_path,
            report=asker,
            should_stop=asker.should_stop,
            checkpoint_dir=tmp_path / "checkpoints",
        )
    assert caught.value.reason == reason
    assert [event.step for event in asker.of(Checkpoint)] == checkpoint_steps
    assert [end.outcome for end in asker.of(ArmEnd)] == outcomes
    assert not (tmp_path / "arm-0").exists()


def test_strongest_stop_reason_wins() -> None:
    for strong in STOPS:
        for weak in STOPS[: STOPS.index(strong)]:
            for order in ((strong, weak), (weak, strong)):
                flag = StopFlag()
                for reason in order:
                    flag.request(reason)
                assert flag() == strong
    flag = StopFlag()
    flag.request("sideways")
    assert flag() == ""


def test_arm_is_saved_and_reported_after_its_last_step(
    make_spec: MakeSpec, tmp_path: Path, record: Recorder
) -> None:
    train([make_spec(max_steps=3), make_spec(name="long", max_steps=6)], tmp_path, report=record)
    story = [event for event in record if isinstance(event, Artifact | ArmEnd | Metrics)]
    first = next(place for place, event in enumerate(story) if isinstance(event, ArmEnd))
    assert (story[first].arm, story[first - 1]) == (0, record.of(Artifact)[0])
    after = [event.step for event in story[first:] if isinstance(event, Metrics) if event.arm == 1]
    assert set(after) == {4, 5, 6}


def test_ended_arms_are_neither_trained_nor_reported(
    make_spec: MakeSpec, tmp_path: Path, record: Recorder
) -> None:
    specs = [make_spec(name="done", max_steps=3), make_spec(name="open", seed=7, max_steps=8)]
    asker, kept = Asker("drain", 5, arm=1), tmp_path / "checkpoints"
    with pytest.raises(Stopped):
        train(specs, tmp_path, report=asker, should_stop=asker.should_stop, checkpoint_dir=kept)
    assert [event.arm for event in asker.of(ArmEnd)] == [0]
    resume = checkpoints.find_newest(kept, record)
    ends = train(specs, tmp_path, report=record, resume_from=resume, checkpoint_dir=kept, ended=[0])
    assert [(end.arm, end.outcome, end.step) for end in ends] == [(1, "succeeded", 8)]
    told: list[Event] = [event for event in record if getattr(event, "arm", 1) == 0]
    assert not told
    train(specs, tmp_path / "whole", report=Recorder())
    assert_equal(weights(tmp_path, 1), weights(tmp_path / "whole", 1))


def test_arm_whose_end_was_not_stored_is_saved_again(
    make_spec: MakeSpec, tmp_path: Path, record: Recorder
) -> None:
    specs = [make_spec(name="done", max_steps=3), make_spec(name="open", seed=7, max_steps=8)]
    asker, kept = Asker("drain", 5, arm=1), tmp_path / "checkpoints"
    with pytest.raises(Stopped):
        train(specs, tmp_path, report=asker, should_stop=asker.should_stop, checkpoint_dir=kept)
    before = weights(tmp_path)
    resume = checkpoints.find_newest(kept, record)
    ends = train(specs, tmp_path / "again", report=record, resume_from=resume, checkpoint_dir=kept)
    assert [(end.arm, end.outcome, end.step) for end in ends] == [(0, "succeeded", 3), (1, "succeeded", 8)]
    assert "Continues from step 5." in [event.text for event in record.of(Message)]
    assert_equal(weights(tmp_path / "again"), before)


def test_finish_writes_a_checkpoint_before_the_adapter(make_spec: MakeSpec, tmp_path: Path) -> None:
    """An engine that dies while saving then saves again instead of training again."""
    asker, _ends = run_until("finish", 5, make_spec(max_steps=50), tmp_path)
    kinds = [type(event) for event in asker if isinstance(event, Checkpoint | Artifact)]
    assert kinds == [Checkpoint, Artifact]
    assert asker.of(Checkpoint)[0].step == 5


def test_finish_saves_an_adapter_of_every_trained_arm(make_spec: MakeSpec, tmp_path: Path) -> None:
    specs = [make_spec(name="done", max_steps=3), make_spec(name="open", seed=7, max_steps=50)]
    asker = Asker("finish", 5, arm=1)
    ends = train(specs, tmp_path, report=asker, should_stop=asker.should_stop)
    assert [(end.arm, end.outcome, end.step) for end in ends] == [
        (0, "succeeded", 3),
        (1, "stopped_early", 5),
    ]
