"""Metrics of a run: one row per (run, name), with the points in compact chunks."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence

from django.db import models, transaction

from dashboard.models.training.training_run import TrainingRun

CHUNK_POINTS = 1024
Point = tuple[int, float]


class MetricSeriesQuerySet(models.QuerySet["MetricSeries"]):
    """Metric series of runs."""

    def append(self, run: TrainingRun, name: str, points: Sequence[Point]) -> None:
        """Add points with rising steps; a resumed run replaces its points from the first step on."""
        if not points:
            return
        with transaction.atomic():
            series, _created = self.get_or_create(run=run, name=name)
            if series.count and points[0][0] <= series.last_step:
                series.cut_from(points[0][0])
            series.extend(points)

    def points_of(self, runs: Iterable[int], name: str) -> dict[int, list[Point]]:
        """Return run -> the points of one curve, in one query and without a model row for each."""
        chunks = MetricChunk.objects.filter(series__in=self.filter(run__in=runs, name=name))
        found: dict[int, list[Point]] = {}
        rows = chunks.order_by("first_step").values_list("series__run_id", "count", "steps", "values")
        for run, count, steps, values in rows:
            found.setdefault(run, []).extend(unpack_points(count, steps, values))
        return found


class MetricSeries(models.Model):
    """One curve. Lists and sorting read only this row."""

    run = models.ForeignKey(TrainingRun, models.CASCADE, related_name="metric_series")
    name = models.CharField(max_length=60)
    count = models.PositiveIntegerField(default=0)
    first_step = models.PositiveIntegerField(default=0)
    last_step = models.PositiveIntegerField(default=0)
    last = models.FloatField(null=True, blank=True)
    low = models.FloatField(null=True, blank=True)
    high = models.FloatField(null=True, blank=True)

    objects = MetricSeriesQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["run", "name"], name="metric_series_once_per_run")]
        indexes = [models.Index(fields=["name", "last", "run"])]

    def __str__(self) -> str:
        return f"{self.name} of run {self.run_id}"

    def points(self, since: int = -1) -> list[Point]:
        """Return the points after step `since`, in order."""
        # `all` uses prefetched chunks: several runs on one chart are one query.
        chunks = self.chunks.filter(last_step__gt=since) if since >= 0 else self.chunks.all()
        return [point for chunk in chunks for point in chunk.points() if point[0] > since]

    def extend(self, points: Sequence[Point]) -> None:
        """Append points whose steps all lie after `last_step`."""
        tail = self.chunks.last()
        kept = tail.points() if tail and tail.count < CHUNK_POINTS else []
        if kept and tail:
            tail.delete()
        merged = [*kept, *points]
        for start in range(0, len(merged), CHUNK_POINTS):
            MetricChunk.of(self, merged[start : start + CHUNK_POINTS]).save()
        self._summarise(points)

    def _summarise(self, points: Sequence[Point]) -> None:
        values = [value for _step, value in points if math.isfinite(value)]
        if not self.count:
            self.first_step = points[0][0]
        self.count += len(points)
        self.last_step, self.last = points[-1]
        self.low = min([*values, *([] if self.low is None else [self.low])], default=None)
        self.high = max([*values, *([] if self.high is None else [self.high])], default=None)
        self.save()

    def cut_from(self, step: int) -> None:
        """Drop every point at `step` or later."""
        kept = [point for point in self.points() if point[0] < step]
        self.chunks.all().delete()
        self.count, self.first_step, self.last_step = 0, 0, 0
        self.last = self.low = self.high = None
        if kept:
            self.extend(kept)
        else:
            self.save()


class MetricChunk(models.Model):
    """Up to 1,024 points: steps as 8-byte integers, values as 4-byte floats, little-endian."""

    series = models.ForeignKey(MetricSeries, models.CASCADE, related_name="chunks")
    first_step = models.PositiveIntegerField()
    last_step = models.PositiveIntegerField()
    count = models.PositiveIntegerField()
    steps = models.BinaryField()
    values = models.BinaryField()

    class Meta:
        ordering = ["series", "first_step"]
        constraints = [
            models.UniqueConstraint(fields=["series", "first_step"], name="metric_chunk_starts_once")
        ]

    def __str__(self) -> str:
        return f"{self.series} [{self.first_step}, {self.last_step}]"

    @classmethod
    def of(cls, series: MetricSeries, points: Sequence[Point]) -> MetricChunk:
        """Return an unsaved chunk of these points."""
        steps, values = zip(*points, strict=True)
        return cls(
            series=series,
            first_step=steps[0],
            last_step=steps[-1],
            count=len(points),
            steps=struct.pack(f"<{len(points)}q", *steps),
            values=struct.pack(f"<{len(points)}f", *values),
        )

    def points(self) -> list[Point]:
        """Return the points in order."""
        return unpack_points(self.count, self.steps, self.values)


def unpack_points(count: int, steps: bytes | memoryview, values: bytes | memoryview) -> list[Point]:
    """Return the points of a chunk, in order."""
    numbers = struct.unpack(f"<{count}q", bytes(steps))
    return list(zip(numbers, struct.unpack(f"<{count}f", bytes(values)), strict=True))
