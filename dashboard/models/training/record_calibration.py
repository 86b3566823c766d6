"""Keeps what a finished run measured, so that it corrects later forecasts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboard.models.jobs.worker_node import WorkerNode
from dashboard.models.training.calibration import Calibration
from dashboard.models.training.forecast import RunForecaster, estimate_run
from workers.contract.errors import TargetError
from workers.contract.hyperparameters import Hyperparameters
from workers.forecasting.training_cost import FORMULA, expected_seconds

if TYPE_CHECKING:
    from dashboard.models.training.training_run import TrainingRun


def record_calibration(run: TrainingRun) -> Calibration | None:
    """Store what a run measured beside its estimate; None for a run without a clear time of its own.

    Such runs have several attempts or arms, or settings that were adjusted on the way.
    """
    measured = run.measured
    needed = ("peak_memory_bytes", "seconds", "wall_seconds", "dtype", "device")
    job = run.job
    if job is None or job.attempt > 1 or job.training_runs.count() > 1 or run.adjustments:
        return None
    if not all(measured.get(name) for name in needed):
        return None
    device = WorkerNode.objects.device_of(job.worker) or str(measured["device"])
    dtype = str(measured["dtype"])
    hyperparameters = Hyperparameters(**run.hyperparameters)
    forecaster = RunForecaster(run.base_model, run.dataset_version, validation_version=run.validation_version)
    try:
        resolution = run.target_module_config.resolve(run.base_model)
    except TargetError:
        return None  # The base model's census is of another version by now.
    if resolution.refusal:
        return None
    shape, workload = forecaster.shape(resolution, hyperparameters), forecaster.workload(hyperparameters)
    estimate = estimate_run(
        shape, workload, hyperparameters, device, dtype, int(measured.get("threads") or 0)
    )
    return Calibration.objects.create(
        run=run,
        base_model=run.base_model,
        device=device[:120],
        dtype=dtype,
        formula=FORMULA,
        estimated_memory_bytes=round(estimate.memory_bytes),
        estimated_training_seconds=estimate.seconds.training,
        expected_memory_bytes=run.forecast.get("peak_memory_bytes", {}).get("expected", 0),
        expected_seconds=expected_seconds(run.forecast),
        memory_bytes=int(measured["peak_memory_bytes"]),
        training_seconds=float(measured["seconds"]),
        seconds=float(measured["wall_seconds"]),
    )
