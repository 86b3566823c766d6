"""Estimated time of an evaluation by adapters, rows and answer lengths."""

from __future__ import annotations

import dataclasses

import pytest

from tests.conftest import tiny_census
from workers.forecasting.evaluation_cost import MAX_NEW_TOKENS, ScoringRows, estimate_scoring_time
from workers.forecasting.training_cost import ModelShape, model_shape
from workers.target_modules.census import Census

ROWS = ScoringRows(count=200, tokens=60.0, answer=10.0)
SPEED = 1e11


@pytest.fixture
def small() -> ModelShape:
    """A model of 135 million parameters in 30 layers."""
    tiny = model_shape(Census.from_dict(tiny_census()), (), 1, 0)
    return dataclasses.replace(
        tiny,
        parameters=135_000_000,
        hidden_size=576,
        num_layers=30,
        vocab_size=49_152,
        linear_parameters=106_000_000,
    )


def job(sizes: ModelShape, rows: ScoringRows = ROWS, *, adapters: int = 1, with_base: bool = False) -> float:
    return estimate_scoring_time(sizes, rows, SPEED, "cpu", adapters=adapters, with_base=with_base)


def test_base_costs_less_than_an_adapter(small: ModelShape) -> None:
    one, two, three = (job(small, adapters=count) for count in (1, 2, 3))
    assert three - two == pytest.approx(two - one)
    base = job(small, with_base=True) - one
    assert 0 < base < two - one, "an adapter is timed and attached besides"


def test_time_is_linear_in_rows(small: ModelShape) -> None:
    many = dataclasses.replace(ROWS, count=3200)
    more = dataclasses.replace(ROWS, count=6400)
    fixed = job(small, dataclasses.replace(ROWS, count=0))
    assert (job(small, more) - fixed) / (job(small, many) - fixed) == pytest.approx(2, rel=0.01)


def test_answer_length_is_limited(small: ModelShape) -> None:
    times = [job(small, ScoringRows(200, 400.0, answer)) for answer in (10.0, 50.0, 120.0)]
    assert times == sorted(times)
    assert ScoringRows(2, 900.0, 500.0).written_tokens == 2 * MAX_NEW_TOKENS


def test_shared_prefix_is_read_once(small: ModelShape) -> None:
    alike = dataclasses.replace(ROWS, prefix=40)
    assert alike.read_tokens == 200 * 20 + 40
    assert job(small, alike) < job(small)
