"""Forecasts on known devices, and their correction by measurements of ended runs."""

from __future__ import annotations

from typing import Any

import pytest

from dashboard.models import Calibration, Dataset, Job, TrainingRun, WorkerNode
from dashboard.models.training.forecast import RunForecaster
from dashboard.models.training.record_calibration import record_calibration
from tests.conftest import finish, make_run
from workers.contract.hyperparameters import Hyperparameters
from workers.forecasting.training_cost import FORMULA

CPU = "CPU, 4 cores (x86_64)"
LENGTHS = {
    "rows": 20,
    "max": 50,
    "quantiles": [20 + 0.3 * place for place in range(101)],
    "answer_ends": [20 + 0.3 * place for place in range(101)],
    "learned_mean": 5.0,
    "shared_prefix": 0,
}
LEARN = Hyperparameters(r=4, max_steps=10, max_length=64)


@pytest.fixture
def node(db: None) -> WorkerNode:
    """A training node with four cores."""
    return WorkerNode.objects.create(
        name="gpu0@here", queue="gpu", host="here", pid=1, device=CPU, memory_bytes=16_000_000_000
    )


@pytest.fixture
def measured_dataset(dataset: Dataset) -> Dataset:
    """A dataset with measured token lengths."""
    version = dataset.newest_ready()
    assert version is not None
    version.report["token_lengths"] = LENGTHS
    version.save()
    return Dataset.objects.get(pk=dataset.pk)


def end(run: TrainingRun, **changes: Any) -> TrainingRun:
    """End the run on the node and return it."""
    assert run.job is not None
    finish(run.job)
    Job.objects.filter(pk=run.job.pk).update(worker="gpu0@here")
    run = TrainingRun.objects.get(pk=run.pk)
    measured = {
        "peak_memory_bytes": 900_000_000, "seconds": 12.0, "wall_seconds": 20.0, "dtype": "float32",
        "device": "cpu", "threads": 3, **changes,
    }  # fmt: skip
    run.end("succeeded", step=10, measured=measured)
    return run


def forecast(run: TrainingRun, learn: Hyperparameters = LEARN) -> Any:
    forecaster = RunForecaster.load(run.base_model, run.dataset_version)
    return forecaster.forecast(run.target_module_config.resolve(run.base_model), learn)


def test_every_training_node_is_a_device(run: TrainingRun, node: WorkerNode) -> None:
    WorkerNode.objects.create(
        name="gpu1@there", queue="gpu", host="there", pid=2, device="NVIDIA H100", memory_bytes=80_000_000_000
    )
    WorkerNode.objects.create(name="cpu@here", queue="cpu", host="here", pid=3, device=CPU, memory_bytes=1)
    found = forecast(run)
    assert [one.device for one in found.devices] == [CPU, "NVIDIA H100"]
    assert {one.fit for one in found.devices} == {"fits"}
    assert found.main.seconds["expected"] == min(one.seconds["expected"] for one in found.devices)


def test_a_small_device_is_too_large_a_fit(run: TrainingRun, node: WorkerNode) -> None:
    WorkerNode.objects.filter(pk=node.pk).update(memory_bytes=1_600_000_000)
    assert forecast(run).main.fit == "too_large"


def test_without_nodes_the_device_is_a_cpu_of_unknown_size(run: TrainingRun) -> None:
    found = forecast(run).main
    assert (found.device, found.fit, found.is_rough) == ("CPU", "", True)


def test_an_ended_run_is_recorded_with_its_forecast(
    measured_dataset: Dataset, node: WorkerNode, run: TrainingRun
) -> None:
    end(run)
    row = Calibration.objects.get()
    assert (row.device, row.dtype, row.formula, row.run) == (CPU, "float32", FORMULA, run)
    assert row.expected_memory_bytes == run.forecast["peak_memory_bytes"]["expected"]
    assert (row.memory_bytes, row.training_seconds, row.seconds) == (900_000_000, 12.0, 20.0)


def test_runs_with_several_attempts_are_not_recorded(run: TrainingRun, node: WorkerNode) -> None:
    ended = end(run)
    Calibration.objects.all().delete()
    ended.adjustments = [{"reason": "out_of_memory"}]
    assert record_calibration(ended) is None
    ended.adjustments = []
    assert ended.job is not None
    ended.job.attempt = 2
    assert record_calibration(ended) is None
    ended.job.attempt = 1
    ended.measured = {"seconds": 1.0}
    assert record_calibration(ended) is None


def test_measurements_correct_the_next_forecast(
    measured_dataset: Dataset, node: WorkerNode, run: TrainingRun
) -> None:
    before = forecast(run).main
    for name in ("a", "b", "c"):
        end(make_run(run.project, measured_dataset, run.base_model, name=name))
    after = forecast(run).main
    assert before.is_rough
    assert not after.is_rough
    assert after.peak_memory_bytes["expected"] == pytest.approx(900_000_000, rel=0.05)
    assert after.seconds["expected"] == pytest.approx(20.0, rel=0.25)
    assert after.seconds["high"] / after.seconds["low"] < before.seconds["high"] / before.seconds["low"]


def test_the_dtype_is_the_last_one_of_the_device(
    measured_dataset: Dataset, node: WorkerNode, run: TrainingRun
) -> None:
    forecaster = RunForecaster.load(run.base_model, run.dataset_version)
    assert forecaster.dtype_on(CPU) == "float32"
    end(run, dtype="bfloat16")
    assert RunForecaster.load(run.base_model, run.dataset_version).dtype_on(CPU) == "bfloat16"


def test_errors_of_past_forecasts(measured_dataset: Dataset, node: WorkerNode, run: TrainingRun) -> None:
    assert Calibration.objects.errors() is None
    end(run)
    Calibration.objects.update(expected_memory_bytes=1_000_000_000, expected_seconds=16.0)
    errors = Calibration.objects.errors()
    assert errors is not None
    assert (errors.count, errors.memory, errors.seconds) == (1, pytest.approx(0.1), pytest.approx(0.25))


def test_measurements_outlive_their_run(run: TrainingRun, node: WorkerNode) -> None:
    end(run).delete()
    assert Calibration.objects.get().run is None


def test_unmeasured_rows_count_as_full(run: TrainingRun) -> None:
    found = forecast(run)
    assert found.rows_cut is None
    assert found.tokens == 10 * 8 * 64


def test_it_counts_cut_answers(measured_dataset: Dataset, run: TrainingRun) -> None:
    run.dataset_version.refresh_from_db()
    whole, half = (forecast(run, Hyperparameters(max_length=length)) for length in (64, 35))
    assert (whole.rows_cut, whole.rows_lost) == (0, 0)
    assert (half.rows_cut, half.cut_share) == (8, 0.5)
    assert half.rows_lost < half.rows_cut
