"""The forecast's picture of the engine, compared with the engine itself."""

from __future__ import annotations

from dataclasses import fields

from workers.contract.specs import TrainSpec
from workers.engine.training import data, loss
from workers.forecasting import training_cost, workload


def test_the_forecast_knows_how_the_engine_shares_and_cuts() -> None:
    assert workload.PREFIX_TYPES == loss.PREFIX_TYPES
    assert workload.SHORTEST_PREFIX == data.SHORTEST_PREFIX
    assert training_cost.CHUNK_ROWS == loss.CHUNK_ROWS


def test_the_forecast_knows_how_often_and_on_how_much_the_engine_validates() -> None:
    from workers.engine.training import arms

    assert workload.VALIDATIONS_PER_RUN == arms.VALIDATIONS_PER_RUN
    defaults = {field.name: field.default for field in fields(TrainSpec)}
    assert (defaults["validation_rows"], defaults["validation_steps"]) == (workload.VALIDATION_ROWS, 0)
