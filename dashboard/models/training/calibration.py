"""Measurements of finished runs beside their estimates, kept to correct later forecasts.

The numbers belong to the installation: a device is as fast for one project as for another. A row says nothing
about data or users, and stays when its run is deleted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from django.db import models
from django.db.models.functions import Now

from dashboard.models.catalog.base_model import BaseModel
from workers.forecasting.calibration import Correction, correct, error_quantile
from workers.forecasting.training_cost import FORMULA

if TYPE_CHECKING:
    from dashboard.models.accounts.project import Project

# Older runs say little about a machine that may have changed since.
CALIBRATION_RUNS = 200
ERROR_RUNS = 20


@dataclass(frozen=True)
class MeasuredCost:
    """Number of runs, their highest peak memory, and the median seconds of a step."""

    runs: int
    memory_bytes: int
    step_seconds: float


@dataclass(frozen=True)
class ForecastErrors:
    """Relative errors that nine of ten of the last forecasts did not exceed."""

    count: int
    memory: float
    seconds: float


class CalibrationQuerySet(models.QuerySet["Calibration"]):
    """Measurements of finished runs."""

    def usable(self) -> list[Calibration]:
        """Return the newest ones whose estimates come from the present formulas."""
        return list(self.filter(formula=FORMULA).order_by("-pk").defer("created_at")[:CALIBRATION_RUNS])

    def errors(self) -> ForecastErrors | None:
        """Return the errors of the last forecasts; None before the first."""
        forecast = self.filter(expected_seconds__gt=0, expected_memory_bytes__gt=0)
        facts = ("memory_bytes", "expected_memory_bytes", "seconds", "expected_seconds")
        rows = list(forecast.order_by("-pk").values_list(*facts)[:ERROR_RUNS])
        memory = error_quantile([measured / expected for measured, expected, *_time in rows])
        seconds = error_quantile([measured / expected for *_memory, measured, expected in rows])
        if memory is None or seconds is None:
            return None
        return ForecastErrors(len(rows), memory, seconds)

    def costs_by_config(self, project: Project, base_model: BaseModel) -> dict[int, MeasuredCost]:
        """Return by target-module config what the project's last runs cost on this base model."""
        own = self.filter(run__project=project, base_model=base_model, run__ended_step__gt=0)
        facts = ("run__target_module_config", "memory_bytes", "training_seconds", "run__ended_step")
        costs: dict[int, list[tuple[int, float]]] = {}
        for config, memory, seconds, steps in own.order_by("-pk").values_list(*facts)[:CALIBRATION_RUNS]:
            costs.setdefault(config, []).append((memory, seconds / steps))
        return {
            config: MeasuredCost(len(runs), max(run[0] for run in runs), median(run[1] for run in runs))
            for config, runs in costs.items()
        }


class Calibration(models.Model):
    """Estimate, forecast and measurement of one finished run."""

    run = models.OneToOneField(
        "dashboard.TrainingRun", models.SET_NULL, null=True, blank=True, related_name="calibration"
    )
    base_model = models.ForeignKey(BaseModel, models.CASCADE, related_name="+")
    device = models.CharField(max_length=120)
    dtype = models.CharField(max_length=20)
    formula = models.PositiveSmallIntegerField()
    estimated_memory_bytes = models.BigIntegerField()
    estimated_training_seconds = models.FloatField()
    # What the run's forecast expected; 0 without one.
    expected_memory_bytes = models.BigIntegerField(default=0)
    expected_seconds = models.FloatField(default=0)
    memory_bytes = models.BigIntegerField()
    training_seconds = models.FloatField()
    seconds = models.FloatField()
    created_at = models.DateTimeField(db_default=Now())

    objects = CalibrationQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.device}, {self.base_model}"

    @property
    def memory_ratio(self) -> float:
        """Return measured / estimated peak memory."""
        return self.memory_bytes / max(1, self.estimated_memory_bytes)

    @property
    def time_ratio(self) -> float:
        """Return measured / estimated seconds of the training steps."""
        return self.training_seconds / max(self.estimated_training_seconds, 1e-9)


@dataclass(frozen=True)
class Corrections:
    """Corrections of peak memory and of the time to compute."""

    memory: Correction
    time: Correction


def corrections(rows: Iterable[Calibration], device: str, dtype: str, base_model_id: int) -> Corrections:
    """Return what finished runs on this device say about one more run on this base model."""
    there = [row for row in rows if (row.device, row.dtype) == (device, dtype)]
    same = [row for row in there if row.base_model_id == base_model_id]
    return Corrections(
        memory=correct([row.memory_ratio for row in same], [row.memory_ratio for row in there]),
        time=correct([row.time_ratio for row in same], [row.time_ratio for row in there]),
    )
