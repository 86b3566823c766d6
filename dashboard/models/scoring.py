"""How long scoring takes: formulas corrected by this installation's own scoring that has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models.functions import Now

from dashboard.models.base_model import BaseModel
from dashboard.models.forecast import RunForecaster, device_kind, device_threads
from dashboard.models.job import Job
from dashboard.models.worker_node import WorkerNode
from workers import estimates, scoring
from workers.calibration import TIME, Observation, correction
from workers.errors import TargetError
from workers.hyperparameters import Hyperparameters
from workers.specs import EvalSpec
from workers.workload import PREFIX_TYPES

if TYPE_CHECKING:
    from dashboard.models.training_run import TrainingRun

# Older jobs say little about a machine that may have changed since.
REMEMBERED = 100
BYTES = {"float32": 4, "bfloat16": 2}


class ScoringTime(models.Model):
    """One job of scores that has ended: reckoned by formula, and measured. Says nothing of data or people."""

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
        """Measured / estimated."""
        return self.seconds / max(self.estimated_seconds, 1e-9)


def estimate_seconds(
    forecaster: RunForecaster,
    device: str,
    dtype: str,
    threads: int,
    rows: scoring.ScoringRows,
    *,
    adapters: int,
    base: bool,
) -> float:
    """Seconds of one job by formula alone."""
    shape = estimates.model_shape(forecaster.census, (), 1, 0)
    speed = estimates.typical_operations_per_second(device, threads, BYTES.get(dtype, 4))
    return scoring.estimate_scoring_time(
        shape, rows, speed, device_kind(device), adapters=adapters, with_base=base
    )


def scoring_rows(forecaster: RunForecaster, count: int, max_length: int) -> scoring.ScoringRows:
    """Test rows as long as the training rows are: both were drawn by chance."""
    known = forecaster.rows(Hyperparameters(max_length=max_length))
    kept = known.kept(max_length) or known
    prefix = kept.prefix if forecaster.census.model_type in PREFIX_TYPES else 0
    return scoring.ScoringRows(count, sum(kept.lengths) / len(kept.lengths), kept.learned, prefix)


def forecast_scoring(
    forecaster: RunForecaster, rows: scoring.ScoringRows, jobs: list[tuple[int, bool]]
) -> dict[str, float]:
    """Seconds of jobs of (adapters, whether the base too) with their range, on the first device."""
    device = forecaster.nodes[0][0]
    dtype = forecaster.dtype_on(device)
    summed = sum(
        estimate_seconds(
            forecaster, device, dtype, device_threads(device), rows, adapters=adapters, base=base
        )
        for adapters, base in jobs
    )
    ended = ScoringTime.objects.filter(formula=scoring.FORMULA, device=device, dtype=dtype)[:REMEMBERED]
    seen = [Observation(device, str(one.base_model_id), "", one.ratio) for one in ended]
    return correction(seen, device, str(forecaster.base_model.pk), "", TIME).span(summed)


def expected_scoring_seconds(run: TrainingRun) -> float:
    """What scoring a single run's adapter and its base model takes; 0 where that cannot be estimated."""
    there = int(run.dataset_version.splits.get("test", 0))
    if not there:
        return 0.0
    forecaster = RunForecaster.load(run.base_model, run.dataset_version)
    try:
        rows = scoring_rows(forecaster, min(there, EvalSpec.max_rows), int(run.hyperparameters["max_length"]))
        return forecast_scoring(forecaster, rows, [(1, True)])["expected"]
    except TargetError:
        return 0.0  # counted by another version since


def record_scoring_time(job: Job, found: dict[str, Any]) -> ScoringTime | None:
    """Keep what a job of scores measured beside what is reckoned for it; None where that teaches nothing."""
    scored = list(job.evaluations.select_related("base_model", "dataset_version", "run"))
    if not scored or not found.get("seconds"):
        return None
    first = scored[0]
    node = WorkerNode.objects.filter(name=job.worker).exclude(device="").first()
    device = node.device if node else str(found["device"])
    forecaster = RunForecaster(first.base_model, first.dataset_version, ((device, 0),), [])
    adapters = sum(one.adapter_id is not None for one in scored)
    threads = int(found.get("threads") or device_threads(device))
    try:
        rows = scoring_rows(forecaster, int(found["rows"]), int(first.run.hyperparameters["max_length"]))
        estimated = estimate_seconds(
            forecaster, device, found["dtype"], threads, rows, adapters=adapters, base=len(scored) > adapters
        )
    except TargetError:
        return None  # counted by another version since
    return ScoringTime.objects.create(
        base_model=first.base_model,
        device=device[:120],
        dtype=found["dtype"],
        formula=scoring.FORMULA,
        estimated_seconds=estimated,
        seconds=float(found["seconds"]),
    )
