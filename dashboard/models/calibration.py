"""What a finished run has measured beside what was reckoned for it, kept to correct later forecasts.

The numbers belong to the installation: a device is as fast for one project as for another. A row says nothing
about data or people, and stays when its run is deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from django.db import models
from django.db.models.functions import Now

from dashboard.models.base_model import BaseModel
from workers.calibration import MEMORY, START, TIME, Correction, Observation, Prior, correction, within
from workers.estimates import FORMULA

if TYPE_CHECKING:
    from dashboard.models.forecast import RawEstimate
    from dashboard.models.project import Project

# Older runs say little about a machine that may have changed since.
REMEMBERED = 200
RECORD = 20
PRIORS: tuple[Prior, ...] = (MEMORY, TIME, START)


@dataclass(frozen=True)
class MeasuredCost:
    """What runs of one kind have cost: how many, the highest peak, and the usual time of a step."""

    runs: int
    memory_bytes: int
    step_seconds: float


@dataclass(frozen=True)
class ForecastErrors:
    """How far the last forecasts were off, as shares that nine of ten did not exceed."""

    count: int
    memory: float
    seconds: float


class CalibrationQuerySet(models.QuerySet["Calibration"]):
    """Measurements by what they teach."""

    def usable(self) -> list[Calibration]:
        """The newest ones that were reckoned by today's formulas."""
        return list(self.filter(formula=FORMULA).order_by("-pk")[:REMEMBERED])

    def errors(self) -> ForecastErrors | None:
        """The record of the last forecasts that people were shown; None before the first."""
        shown = self.filter(expected_seconds__gt=0, expected_memory_bytes__gt=0)
        rows = list(shown.order_by("-pk")[:RECORD])
        memory = within([row.memory_bytes / row.expected_memory_bytes for row in rows])
        seconds = within([row.seconds / row.expected_seconds for row in rows])
        return (
            ForecastErrors(len(rows), memory, seconds) if memory is not None and seconds is not None else None
        )

    def costs_by_config(self, project: Project, base_model: BaseModel) -> dict[int, MeasuredCost]:
        """Config -> what the project's last runs with it have cost on this base model."""
        own = self.filter(run__project=project, base_model=base_model, run__ended_step__gt=0)
        facts = ("run__target_module_config", "memory_bytes", "training_seconds", "run__ended_step")
        found: dict[int, list[tuple[int, float]]] = {}
        for config, memory, seconds, steps in own.order_by("-pk").values_list(*facts)[:REMEMBERED]:
            found.setdefault(config, []).append((memory, seconds / steps))
        return {
            config: MeasuredCost(len(seen), max(one[0] for one in seen), median(one[1] for one in seen))
            for config, seen in found.items()
        }


class Calibration(models.Model):
    """One finished run: reckoned by formula, told to people, and measured."""

    run = models.OneToOneField(
        "dashboard.TrainingRun", models.SET_NULL, null=True, blank=True, related_name="calibration"
    )
    base_model = models.ForeignKey(BaseModel, models.CASCADE, related_name="+")
    device = models.CharField(max_length=120)
    dtype = models.CharField(max_length=20)
    setting = models.CharField(max_length=60)
    formula = models.PositiveSmallIntegerField()
    estimated_memory_bytes = models.BigIntegerField()
    estimated_training_seconds = models.FloatField()
    estimated_validation_seconds = models.FloatField()
    estimated_other_seconds = models.FloatField()
    expected_memory_bytes = models.BigIntegerField(default=0)  # as the run's page said; 0: nothing was said
    expected_seconds = models.FloatField(default=0)
    memory_bytes = models.BigIntegerField()
    training_seconds = models.FloatField()
    seconds = models.FloatField()
    created_at = models.DateTimeField(db_default=Now())

    objects = CalibrationQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.device}, {self.setting}"

    @property
    def memory_ratio(self) -> float:
        """Measured / reckoned peak."""
        return self.memory_bytes / max(1, self.estimated_memory_bytes)

    @property
    def speed_ratio(self) -> float:
        """Measured / reckoned seconds of the training steps."""
        return self.training_seconds / max(self.estimated_training_seconds, 1e-9)

    @property
    def other_ratio(self) -> float:
        """Measured / reckoned seconds of loading and saving."""
        rest = self.seconds - self.training_seconds - self.estimated_validation_seconds * self.speed_ratio
        # What is left of a long run is mostly the error of its larger parts.
        return min(max(rest / max(self.estimated_other_seconds, 1e-9), 0.25), 4.0)


@dataclass(frozen=True)
class Corrections:
    """What finished runs say about one more: factors on memory, on its steps and on all around them."""

    memory: Correction
    speed: Correction
    other: Correction


class CalibrationIndex:
    """Finished runs, sorted once by device and number format, and then asked about many runs."""

    def __init__(self, rows: Sequence[Calibration]) -> None:
        self.rows = rows
        self.seen: dict[tuple[str, str], list[list[Observation]]] = {}

    def corrections(self, estimate: RawEstimate) -> Corrections:
        """For a run that is reckoned like this."""
        place = (estimate.device, str(estimate.base_model_id), estimate.setting)
        seen = self._seen_on(estimate.device, estimate.dtype)
        found = (correction(one, *place, prior) for one, prior in zip(seen, PRIORS, strict=True))
        return Corrections(*found)

    def _seen_on(self, device: str, dtype: str) -> list[list[Observation]]:
        """What was measured there, each with its factor on memory, on steps and on the rest."""
        if (device, dtype) not in self.seen:
            rows = [row for row in self.rows if (row.device, row.dtype) == (device, dtype)]
            self.seen[device, dtype] = [
                [Observation(device, str(row.base_model_id), row.setting, ratio) for row, ratio in factors]
                for factors in (
                    [(row, row.memory_ratio) for row in rows],
                    [(row, row.speed_ratio) for row in rows],
                    [(row, row.other_ratio) for row in rows],
                )
            ]
        return self.seen[device, dtype]
