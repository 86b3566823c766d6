"""Time of an evaluation job: estimates corrected by this installation's own finished ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models.functions import Now

from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.worker_node import WorkerNode
from dashboard.models.training.forecast import DTYPE_BYTES, Range, RunForecaster, device_threads
from workers.contract.errors import TargetError
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import PREFIX_TYPES, EvalSpec
from workers.forecasting import evaluation_cost, training_cost
from workers.forecasting.calibration import TIME, correct
from workers.forecasting.training_cost import device_kind

if TYPE_CHECKING:
    from dashboard.models.training.training_run import TrainingRun

# Older jobs say little about a machine that may have changed since.
CALIBRATION_JOBS = 100


class ScoringTime(models.Model):
    """Estimated and measured seconds of one finished evaluation job. Holds nothing of data or users."""

    base_model = models.ForeignKey(BaseModel, models.CASCADE, related_name="+")
    device = models.CharField(max_length=120)
    dtype = models.CharField(max_length=20)
    formula = models.PositiveSmallIntegerField()
    estimated_seconds = models.FloatField()
    seconds = models.FloatField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.device}, {self.seconds:.0f} s"

    @property
    def ratio(self) -> float:
        """Return measured / estimated seconds."""
        return self.seconds / max(self.estimated_seconds, 1e-9)


def estimate_job(
    forecaster: RunForecaster,
    device: str,
    dtype: str,
    threads: int,
    rows: evaluation_cost.ScoringRows,
    *,
    adapters: int,
    with_base: bool,
) -> float:
    """Return the seconds of one job by formula alone."""
    shape = training_cost.model_shape(forecaster.census, (), 1, 0)
    speed = training_cost.typical_operations_per_second(device, threads, DTYPE_BYTES.get(dtype, 4))
    kind = device_kind(device)
    return evaluation_cost.estimate_scoring_time(
        shape, rows, speed, kind, adapters=adapters, with_base=with_base
    )


def scoring_rows(forecaster: RunForecaster, count: int, max_length: int) -> evaluation_cost.ScoringRows:
    """Return test rows as long as the training rows: both splits are drawn at random."""
    rows = forecaster.truncated_rows(Hyperparameters(max_length=max_length))
    prefix = rows.prefix if forecaster.census.model_type in PREFIX_TYPES else 0
    return evaluation_cost.ScoringRows(count, sum(rows.lengths) / len(rows.lengths), rows.learned, prefix)


def forecast_scoring(
    forecaster: RunForecaster, rows: evaluation_cost.ScoringRows, jobs: list[tuple[int, bool]]
) -> Range:
    """Return the seconds of jobs on the first device; each is (number of adapters, whether with the base)."""
    device = forecaster.devices[0][0]
    dtype, threads = forecaster.dtype_on(device), device_threads(device)
    estimate = sum(
        estimate_job(forecaster, device, dtype, threads, rows, adapters=adapters, with_base=with_base)
        for adapters, with_base in jobs
    )
    ended = ScoringTime.objects.filter(formula=evaluation_cost.FORMULA, device=device, dtype=dtype)[
        :CALIBRATION_JOBS
    ]
    same = [row.ratio for row in ended if row.base_model_id == forecaster.base_model.pk]
    return correct(same, [row.ratio for row in ended]).interval(estimate, TIME)


def expected_scoring_seconds(run: TrainingRun, *, with_base: bool) -> float:
    """Return the expected seconds to score a run's adapter, and its base model if it has no kept scores.

    0 if that cannot be estimated.
    """
    test_rows = int(run.dataset_version.splits.get("test", 0))
    if not test_rows:
        return 0.0
    forecaster = RunForecaster.load(run.base_model, run.dataset_version)
    try:
        count = min(test_rows, EvalSpec.max_rows)
        rows = scoring_rows(forecaster, count, int(run.hyperparameters["max_length"]))
        return forecast_scoring(forecaster, rows, [(1, with_base)])["expected"]
    except TargetError:
        return 0.0  # The base model's census is of another version by now.


def record_scoring_time(job: Job, measured: dict[str, Any]) -> ScoringTime | None:
    """Store what an evaluation job measured beside its estimate; None where it measured no time."""
    evaluations = list(job.evaluations.select_related("base_model", "dataset_version", "run"))
    if not evaluations or not measured.get("seconds"):
        return None
    first = evaluations[0]
    device = WorkerNode.objects.device_of(job.worker) or str(measured["device"])
    forecaster = RunForecaster(first.base_model, first.dataset_version)
    adapters = sum(evaluation.adapter_id is not None for evaluation in evaluations)
    threads = int(measured.get("threads") or device_threads(device))
    with_base = "base" in measured
    try:
        rows = scoring_rows(forecaster, int(measured["rows"]), int(first.run.hyperparameters["max_length"]))
        estimated = estimate_job(
            forecaster, device, measured["dtype"], threads, rows, adapters=adapters, with_base=with_base
        )
    except TargetError:
        return None  # The base model's census is of another version by now.
    return ScoringTime.objects.create(
        base_model=first.base_model,
        device=device[:120],
        dtype=measured["dtype"],
        formula=evaluation_cost.FORMULA,
        estimated_seconds=estimated,
        seconds=float(measured["seconds"]),
    )
