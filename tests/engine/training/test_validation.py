"""Validation losses by row, and the weights that they choose."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.engine.conftest import Recorder
from tests.tiny_model import chat
from workers.contract.errors import Stopped
from workers.contract.events import ArmEnd, Event, Metrics, never_stop
from workers.contract.specs import BaseSpec, TrainSpec
from workers.engine.base_models.model import load_base, load_tokenizer
from workers.engine.training import train as train_module
from workers.engine.training.encoding import CanonicalRow, Example, encode
from workers.engine.training.loss import Scorer, make_scorer
from workers.engine.training.train import train
from workers.engine.training.validation import Validation, validate

MakeSpec = Callable[..., TrainSpec]
CPU = torch.device("cpu")


def of_rows(*losses: float) -> Validation:
    return Validation(list(losses), [1] * len(losses), 0)


@pytest.fixture
def examples(base: BaseSpec) -> list[Example]:
    """Rows of different lengths."""
    chats = [chat("Say it", "word " * (1 + number % 5)) for number in range(7)]
    return encode(load_tokenizer(base), [CanonicalRow(number, row, None) for number, row in enumerate(chats)])


@pytest.fixture
def scorer(base: BaseSpec, examples: list[Example]) -> Scorer:
    model = load_base(base, torch.float32, CPU)
    return make_scorer(model, model, examples[:2], CPU)


def test_losses_of_rows_are_those_of_each_row_alone(scorer: Scorer, examples: list[Example]) -> None:
    together = validate(scorer, [examples[:4], examples[4:]], CPU, never_stop, lambda: None)
    alone = [validate(scorer, [[example]], CPU, never_stop, lambda: None) for example in examples]
    assert together.row_losses == pytest.approx([row.loss * row.row_tokens[0] for row in alone])
    assert together.row_tokens == [example.target_count for example in examples]
    labelled = sum(together.row_tokens)
    assert together.loss == pytest.approx(sum(row.row_losses[0] for row in alone) / labelled)
    assert together.correct == sum(row.correct for row in alone)


def test_a_stop_is_noticed_within_a_validation(scorer: Scorer, examples: list[Example]) -> None:
    with pytest.raises(Stopped):
        validate(scorer, [examples], CPU, lambda: "cancel", lambda: None)


def test_a_loss_that_is_significantly_above_is_worse() -> None:
    # Differences of 1, 2 and 3 have a mean of 3.46 standard errors.
    assert of_rows(1, 2, 3).is_worse_than([0, 0, 0])
    assert not of_rows(-1, -2, -3).is_worse_than([0, 0, 0])
    # Those of 5, 2 and -1 have one of 1.15, which chance explains.
    assert not of_rows(5, 2, -1).is_worse_than([0, 0, 0])


def test_the_lowest_of_many_must_be_lower_by_more() -> None:
    # A mean of 2.14 standard errors; the limits are 1.64, 1.96 and 2.58.
    assert of_rows(1, 2, 3, 4, 5, -2).is_worse_than([0] * 6)
    assert of_rows(1, 2, 3, 4, 5, -2).is_worse_than([0] * 6, comparisons=2)
    assert not of_rows(1, 2, 3, 4, 5, -2).is_worse_than([0] * 6, comparisons=10)


def test_rows_are_compared_in_pairs() -> None:
    """The rows' own losses differ by far more than the two validations do."""
    assert of_rows(100.2, 0.1, 50.15).is_worse_than([100, 0, 50])


@pytest.mark.parametrize("comparisons", [1, 5])
def test_chance_alone_is_as_rarely_significant_as_it_says(comparisons: int) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 20, 400)
    noise = rng.normal(0, 1, (3000, 400)) * np.sqrt(tokens)
    worse = [Validation(list(row), list(tokens), 0).is_worse_than([0.0] * 400, comparisons) for row in noise]
    assert np.mean(worse) == pytest.approx(0.05 / comparisons, abs=0.01 / comparisons)


def test_equal_losses_are_not_worse() -> None:
    assert not of_rows(1, 2, 3).is_worse_than([1, 2, 3])


def test_one_row_alone_is_compared_as_it_is() -> None:
    assert of_rows(1.01).is_worse_than([1])
    assert not of_rows(0.99).is_worse_than([1])


class Killed(BaseException):
    """Nothing in the engine catches it."""


def train_with(
    losses: dict[int, list[float]], spec: TrainSpec, out: Path, patch: pytest.MonkeyPatch, kill_at: int = 0
) -> ArmEnd:
    """Train while validations are the given ones: the weights are real, and only their losses are chosen."""
    record, left = Recorder(), [*losses.values()]

    def report(event: Event) -> None:
        record(event)
        if isinstance(event, Metrics) and event.step == kill_at and "train/loss" in event.values:
            raise Killed

    patch.setattr(train_module, "validate", lambda *_arguments: of_rows(*left.pop(0)))
    kept = out / "checkpoints"
    newest = max(kept.iterdir()) if kept.is_dir() else None
    (end,) = train([spec], out, report=report, resume_from=newest, checkpoint_dir=kept)
    return end


def trained_weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "arm-0/adapter/adapter_model.safetensors")


def is_step(out: Path, spec: TrainSpec, step: int, patch: pytest.MonkeyPatch) -> bool:
    """Return whether the adapter has the weights that the run has after `step` steps."""
    record, expected = Recorder(), out.parent / f"{out.name}-{step}"

    def should_stop() -> str:
        return "finish" if len(record.series("train/loss")) >= step else ""

    patch.setattr(train_module, "validate", lambda *_arguments: of_rows(math.nan))
    train([spec], expected, report=record, should_stop=should_stop)
    pairs = [trained_weights(out), trained_weights(expected)]
    return all(torch.equal(value, pairs[1][name]) for name, value in pairs[0].items())


# The last is higher by 1.74 standard errors; one comparison would allow 1.64, two allow 1.96.
LOWER_BY_CHANCE = {0: [9.0, 9, 9], 2: [1.0, 2, 3], 4: [2.0, 1, 4], 6: [3.0, 2.5, 3.3]}


def test_the_last_weights_are_published_if_earlier_ones_are_lower_by_chance(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(validation_steps=2, learning_rate=0.05)
    end = train_with(LOWER_BY_CHANCE, spec, tmp_path / "out", monkeypatch)
    assert (end.summary["published_step"], end.summary["validation_loss"]) == (6, pytest.approx(8.8 / 3))
    assert (end.summary["best_validation_step"], end.summary["best_validation_loss"]) == (2, 2)
    assert is_step(tmp_path / "out", spec, 6, monkeypatch)


def test_many_small_losses_of_quality_do_not_add_up(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the later weights is compared with the lowest loss, not with that of the weights before."""
    losses = {0: [9.0, 9, 9], 2: [1.0, 1, 1], 4: [1.5, 0.5, 1.5], 6: [1.6, 1.3, 1.7]}
    assert not of_rows(*losses[6]).is_worse_than([1.5, 1.9, 1.1])
    spec = make_spec(validation_steps=2, learning_rate=0.05)
    end = train_with(losses, spec, tmp_path / "out", monkeypatch)
    assert end.summary["published_step"] == 4
    assert is_step(tmp_path / "out", spec, 4, monkeypatch)


def test_weights_before_training_made_them_worse_are_published(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {0: [9.0, 9, 9], 2: [1.0, 2, 3], 4: [2.0, 3.5, 4], 6: [5.0, 6, 8]}
    spec = make_spec(validation_steps=2, learning_rate=0.05)
    end = train_with(losses, spec, tmp_path / "out", monkeypatch)
    assert (end.summary["published_step"], end.summary["validation_loss"]) == (2, 2)
    assert is_step(tmp_path / "out", spec, 2, monkeypatch)


@pytest.mark.parametrize(("last", "published"), [([1.0, 4, 2], 6), ([2.0, 3, 4.5], 2)])
def test_a_resumed_run_compares_with_the_losses_of_the_earlier_attempt(
    make_spec: MakeSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    last: list[float],
    published: int,
) -> None:
    spec = make_spec(validation_steps=2, learning_rate=0.05)
    losses = {0: [9.0, 9, 9], 2: [1.0, 2, 3], 4: [2.0, 3.5, 4]}
    with pytest.raises(Killed):
        train_with(losses, spec, tmp_path / "out", monkeypatch, kill_at=5)
    end = train_with({6: last}, spec, tmp_path / "out", monkeypatch)
    assert end.summary["published_step"] == published
    assert is_step(tmp_path / "out", spec, published, monkeypatch)
