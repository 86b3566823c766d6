"""Curves of runs for charts, thinned on the server, and the cursor that marks the points of a page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from django.utils.text import Truncator
from django.utils.translation import gettext as _

from dashboard.models import MetricSeries, TrainingRun
from dashboard.models.catalog.metrics import METRICS, Metric
from dashboard.models.training.metric_series import Point

POINTS_SHOWN = 1000
# Of all curves of one chart together, and at least for each.
POINTS_OF_CHART, POINTS_OF_CURVE = 4000, 150
# Curves of a run's page; a cursor has their last steps in this order.
CURVES = ("train/loss", "validation/loss")
# Number of colours of runs in charts; the scripts hold their values.
COLOURS = 5
# Phases of an attempt before its first point; "" before the engine's first event.
BEFORE_TRAINING = ("", "tokenizing", "loading")
_CURSOR = re.compile(r"(\d{1,9})\.(-1|\d{1,10})\.(-1|\d{1,10})", re.ASCII)


@dataclass(frozen=True)
class Cursor:
    """The state of a page's curves: the attempt, and the last step of each curve (-1: none)."""

    attempt: int = 0
    steps: tuple[int, ...] = (-1,) * len(CURVES)

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Parse a request's cursor; an invalid one means that the page has nothing."""
        match = _CURSOR.fullmatch(text)
        if match is None:
            return cls()
        attempt, *steps = (int(part) for part in match.groups())
        return cls(attempt, tuple(steps))

    def __str__(self) -> str:
        return ".".join(str(part) for part in (self.attempt, *self.steps))


def thin(points: Sequence[Point], limit: int = POINTS_SHOWN) -> list[Point]:
    """Return at most `limit` points: first, last, and the lowest and highest of equal stretches between them.

    The same points give the same picture, and no peak is lost.
    """
    if len(points) <= limit:
        return list(points)
    inner = points[1:-1]
    # Most curves are finite, and then the key is the value itself, without a call for each point.
    is_finite = all(map(math.isfinite, map(itemgetter(1), inner)))
    height = itemgetter(1) if is_finite else _height
    buckets = max(1, (limit - 2) // 2)
    kept = [points[0]]
    for bucket in range(buckets):
        part = inner[bucket * len(inner) // buckets : (bucket + 1) * len(inner) // buckets]
        low, high = min(part, key=height), max(part, key=height)
        kept += sorted({low, high})
    return [*kept, points[-1]]


def _height(point: Point) -> float:
    return point[1] if math.isfinite(point[1]) else math.inf


def points_after(run: TrainingRun, cursor: Cursor) -> tuple[dict[str, Any], Cursor]:
    """Return the points after `cursor`, and the cursor after them.

    `replace` is true if the page must drop its points: at its first request, and after a new attempt began.
    """
    attempt = attempt_shown(run, cursor)
    stored = {series.name: series for series in run.metric_series.filter(name__in=CURVES)}
    # A repeated attempt overwrites a curve from its first step on.
    shrunk = any(
        name in stored and stored[name].last_step < since
        for name, since in zip(CURVES, cursor.steps, strict=True)
    )
    replace = shrunk or cursor.attempt != attempt or cursor == Cursor(attempt)
    known = Cursor(attempt) if replace else cursor
    curves = {}
    steps = []
    for name, since in zip(CURVES, known.steps, strict=True):
        series = stored.get(name)
        fresh = series.points(since) if series and series.last_step > since else []
        curves[name] = jsonable(thin(fresh))
        steps.append(fresh[-1][0] if fresh else since)
    after = Cursor(attempt, tuple(steps))
    return {"cursor": str(after), "replace": replace, "curves": curves}, after


def attempt_shown(run: TrainingRun, cursor: Cursor) -> int:
    """Return the attempt of the stored points.

    Until a new attempt trains, they are those of the earlier attempt.
    """
    if run.job is None:
        return 0
    is_before_training = not run.job.is_over and run.job.phase in BEFORE_TRAINING
    return cursor.attempt if cursor.attempt and is_before_training else run.job.attempt


def jsonable(points: Iterable[Point]) -> list[tuple[int, float | None]]:
    """Return points with short numbers, and None for infinities and NaN, which JSON lacks."""
    return [(step, short(value) if math.isfinite(value) else None) for step, value in points]


def short(value: float) -> float:
    """Round to 6 digits. Values are stored as 32 bits, and further digits would only lengthen the page."""
    return float(f"{value:.6g}")


def loss_summary(series: MetricSeries | None) -> str:
    """Return a sentence about the loss, as the title of the chart."""
    points = series.points() if series and series.count > 1 else []
    if len(points) < 2:
        return _("Loss by step")
    # Means of the two ends, as single steps jump.
    window = max(1, len(points) // 10)
    first, last = _mean(points[:window]), _mean(points[-window:])
    values = {"first": f"{first:.3g}", "last": f"{last:.3g}"}
    if not (math.isfinite(first) and math.isfinite(last)):
        return _("Training loss stopped being a number")
    if last < first * 0.98:
        return _("Training loss fell from %(first)s to %(last)s") % values
    if last > first * 1.02:
        return _("Training loss rose from %(first)s to %(last)s") % values
    return _("Training loss stayed near %(last)s") % values


def _mean(points: Sequence[Point]) -> float:
    return sum(value for _step, value in points) / len(points)


def colours(run_ids: Iterable[int]) -> dict[int, dict[str, int]]:
    """Return a colour and a dash for each run: the same on all pages, unless another run has it."""
    taken: dict[int, dict[str, int]] = {}
    for run_id in run_ids:
        used = {(look["colour"], look["dash"]) for look in taken.values()}
        dash = len(taken) // COLOURS
        order = [(run_id + shift) % COLOURS for shift in range(COLOURS)]
        free = next((colour for colour in order if (colour, dash) not in used), order[0])
        taken[run_id] = {"colour": free, "dash": dash}
    return taken


def comparison(runs: Sequence[TrainingRun], name: str) -> dict[str, Any]:
    """Return one curve of several runs for one chart."""
    looks = colours(run.pk for run in runs)
    points = MetricSeries.objects.points_of([run.pk for run in runs], name)
    limit = min(POINTS_SHOWN, max(POINTS_OF_CURVE, POINTS_OF_CHART // max(1, len(points))))
    return {
        "name": name,
        "series": [
            {
                # Names may repeat; the number distinguishes them.
                "label": f"{Truncator(run.name).chars(16)} #{run.pk}",
                "run": run.pk,
                "points": jsonable(thin(points[run.pk], limit)),
                "smooth": name == "train/loss",
                **looks[run.pk],
            }
            for run in runs
            if run.pk in points
        ],
        "table": table({str(run.pk): points[run.pk] for run in runs if run.pk in points}),
    }


def table(curves: dict[str, Sequence[Point]], rows: int = 25) -> list[tuple[int, list[float | None]]]:
    """Return the chart as a table: (step, value of each curve) at about `rows` steps, ends included."""
    by_step = [dict(points) for points in curves.values()]
    steps = sorted(set().union(*by_step))
    if len(steps) > rows:
        steps = [steps[round(place * (len(steps) - 1) / (rows - 1))] for place in range(rows)]
    return [(step, [known.get(step) for known in by_step]) for step in steps]


def length_bars(token_lengths: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows by length in tokens, from the shortest to the longest; bars in percent."""
    histogram = token_lengths.get("histogram", {})
    counts, ends = histogram.get("rows", []), histogram.get("up_to", [])
    used = [place for place, count in enumerate(counts) if count]
    if not used:
        return []
    bars = []
    for place in range(used[0], used[-1] + 1):
        low = ends[place - 1] + 1 if place else 1
        label = f"{low:,}–{ends[place]:,}" if ends[place] else f"{low:,}+"
        bars.append({"label": label, "count": counts[place], "percent": 100 * counts[place] / max(counts)})
    return bars


@dataclass(frozen=True)
class ScoreRow:
    """One metric of base model and adapter on the same rows."""

    metric: Metric
    base: float | None
    adapter: float | None

    @property
    def difference(self) -> str:
        """Return adapter minus base with its sign; shares in percentage points."""
        if self.base is None or self.adapter is None:
            return "–"
        gap = self.adapter - self.base
        if self.metric.is_share:
            return _("%(gap)s points") % {"gap": f"{100 * gap:+.1f}"}
        return f"{gap:+,.0f}" if abs(gap) >= 100 else f"{gap:+.3g}"

    @property
    def is_better(self) -> bool | None:
        """Return whether the adapter improved the metric; None if it did not change or a value is missing."""
        if self.base is None or self.adapter is None or self.base == self.adapter:
            return None
        return (self.adapter > self.base) == self.metric.higher_is_better


def score_rows(run: TrainingRun, scores: dict[str, dict[str, Any]] | None = None) -> list[ScoreRow]:
    """Return the registered metrics that at least one side has, the dataset's main metric first."""
    scores = run.scores() if scores is None else scores
    base, adapter = scores.get("base", {}), scores.get("adapter", {})
    rows = [
        ScoreRow(metric, base.get(name), adapter.get(name))
        for name, metric in METRICS.items()
        if base.get(name) is not None or adapter.get(name) is not None
    ]
    main = run.dataset_version.main_metric
    return sorted(rows, key=lambda row: row.metric.name != main)


def main_score(run: TrainingRun) -> ScoreRow | None:
    """Return the dataset's main metric of base model and adapter; None without an evaluation."""
    return next((row for row in score_rows(run) if row.metric.name == run.dataset_version.main_metric), None)
