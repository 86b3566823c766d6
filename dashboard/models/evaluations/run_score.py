"""Scores of runs, one row per run and metric, so that lists sort and filter by them in SQL."""

from __future__ import annotations

import math
from collections.abc import Iterable

from django.db import models, transaction

from dashboard.models.catalog.metrics import METRICS
from dashboard.models.training.training_run import TrainingRun


class RunScoreQuerySet(models.QuerySet["RunScore"]):
    """Queries of stored scores."""

    def refresh(self, runs: Iterable[int]) -> None:
        """Store the scores of these runs again, from their evaluations.

        Runs of a study that goes on get none, because its scores stay sealed until it ends.
        """
        loaded = TrainingRun.objects.with_scores().only("pk").filter(pk__in=runs)
        sealed = models.Q(study_arm__isnull=False, study_arm__study__finished_at=None)
        rows = []
        for run in loaded.exclude(sealed):
            scores = run.scores()
            base, own = scores.get("base", {}), scores.get("adapter", {})
            rows += [
                RunScore(run=run, metric=name, value=own[name], base=finite(base.get(name)))
                for name in METRICS
                if finite(own.get(name)) is not None
            ]
        with transaction.atomic():
            self.filter(run__in=[run.pk for run in loaded]).delete()
            self.bulk_create(rows)


class RunScore(models.Model):
    """A metric of a run's adapter, and of the base model on the same rows, by the evaluation that counts."""

    run = models.ForeignKey(TrainingRun, models.CASCADE, related_name="stored_scores")
    metric = models.CharField(max_length=20)
    value = models.FloatField()
    base = models.FloatField(null=True, blank=True)

    objects = RunScoreQuerySet.as_manager()

    class Meta:
        ordering = ["metric"]
        constraints = [models.UniqueConstraint(fields=["run", "metric"], name="run_score_once_per_metric")]
        indexes = [models.Index(fields=["metric", "value", "run"])]

    def __str__(self) -> str:
        return f"{self.metric} of run {self.run_id}"


def finite(value: float | None) -> float | None:
    """Return the value if it is a finite number, else None."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None
