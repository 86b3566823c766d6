"""Compare: chosen runs side by side, as curves, settings, results and cost. Names no winner."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_GET

from dashboard import charts
from dashboard.downloads import csv_file
from dashboard.forms.plan import label_of, worded
from dashboard.gate import Request
from dashboard.models import MetricSeries, State, TrainingRun

RUNS_OFFERED = 100
# Of a run's measured values, those that are its cost.
COSTS = ("wall_seconds", "tokens_per_second", "peak_memory_bytes")


@require_GET
def index(request: Request) -> HttpResponse:
    """The runs of ?runs=1,2,3 (or repeated), or a list to choose from."""
    runs = chosen(request)
    only = request.GET.get("only") == "differences"
    offered = TrainingRun.objects.with_facts().visible_to(request.user).filter(project=request.project)
    settings = settings_table(runs)
    curves = {name: charts.comparison(runs, name) for name in charts.CURVES}
    for curve in curves.values():
        curve["table"] = table_of(curve)
    context = {
        "runs": runs,
        "offered": offered.order_by("-pk")[:RUNS_OFFERED],
        "chosen": [run.pk for run in runs],
        "only": only,
        "settings": [row for row in settings if row["differs"] or not only],
        "same": sum(not row["differs"] for row in settings),
        "scores": score_table(runs),
        "losses": loss_table(runs),
        "curves": curves,
        "has_curves": any(curve["series"] for curve in curves.values()),
        "told": exact_matches(runs),
        "warnings": warnings(runs),
        "query": ",".join(str(run.pk) for run in runs),
    }
    return render(request, "compare/index.html", context)


@require_GET
def export(request: Request) -> HttpResponse:
    """Everything on the page as one long table: run, kind, name, step, value."""
    runs = chosen(request)
    header = ["run", "name", "kind", "measure", "step", "value"]
    return csv_file("compare.csv", [header, *(row for run in runs for row in lines(run))])


def chosen(request: Request) -> list[TrainingRun]:
    """The runs asked for, in that order; 404 when one of them is not there for this person."""
    parts = [part.strip() for text in request.GET.getlist("runs") for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 19 for part in parts if part):
        raise Http404
    wanted = list(dict.fromkeys(int(part) for part in parts if part))
    runs = TrainingRun.objects.with_facts().with_scores().visible_to(request.user)
    found = {run.pk: run for run in runs.filter(pk__in=wanted)}
    if len(found) < len(wanted):
        raise Http404
    return [found[pk] for pk in wanted]


def settings_table(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """One row per setting, with each run's value and whether they differ."""
    shown = [run.settings_shown() for run in runs]
    names = list(dict.fromkeys(name for values in shown for name in values))
    rows = []
    for name in names:
        values = [worded(values.get(name)) for values in shown]
        rows.append(
            {"name": name, "label": label_of(name), "values": values, "differs": len(set(values)) > 1}
        )
    return rows


def score_table(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """One row per metric: base, adapter and difference of each run."""
    by_run = [{row.name: row for row in charts.score_rows(run.scores())} for run in runs]
    names = [name for name in charts.SCORES if any(name in rows for rows in by_run)]
    return [{"label": charts.SCORES[name][0], "cells": [rows.get(name) for rows in by_run]} for name in names]


def loss_table(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Last training loss, last and lowest validation loss of each run."""
    stored = {
        (series.run_id, series.name): series
        for series in MetricSeries.objects.filter(run__in=runs, name__in=charts.CURVES)
    }
    return [
        {
            "train": stored.get((run.pk, "train/loss")),
            "validation": stored.get((run.pk, "validation/loss")),
        }
        for run in runs
    ]


def table_of(curve: dict[str, Any]) -> list[tuple[int, list[float | None]]]:
    """The twin of one chart, a column per curve in the chart's order."""
    return charts.table({str(place): one["points"] for place, one in enumerate(curve["series"])})


def exact_matches(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """What the page says in words first: each run's exact match before and after, and on how many rows."""
    told = []
    for run in runs:
        row = next((row for row in charts.score_rows(run.scores()) if row.name == "exact_match"), None)
        if row and row.base is not None and row.adapter is not None:
            ended = [one for one in run.evaluations.all() if one.state == State.SUCCEEDED]
            told.append({"run": run, "row": row, "rows": ended[-1].rows})
    return told


def warnings(runs: Sequence[TrainingRun]) -> list[str]:
    """What makes these runs hard to compare."""
    found = []
    if len({run.dataset_version_id for run in runs}) > 1:
        found.append(
            _("They learned from different dataset versions, so their scores are on different rows.")
        )
    if len({run.base_model_id for run in runs}) > 1:
        found.append(_("They adapt different base models."))
    unscored = sum("adapter" not in run.scores() for run in runs)
    if runs and unscored:
        text = ngettext(
            "%(count)d run has no evaluation yet.", "%(count)d runs have no evaluation yet.", unscored
        )
        found.append(text % {"count": unscored})
    return found


def lines(run: TrainingRun) -> Iterable[list[str | float | None]]:
    """Everything about one run for the CSV."""

    def line(kind: str, measure: str, value: Any, step: int | None = None) -> list[str | float | None]:
        return [run.pk, run.name, kind, measure, step, value]

    yield line("state", "state", run.state)
    for name, value in run.settings_shown().items():
        yield line("setting", name, value)
    for subject, metrics in run.scores().items():
        for name, value in metrics.items():
            yield line(subject, name, value)
    for name, value in run.forecast.items():
        yield line("forecast", name, value)
    for name in COSTS:
        if run.measured.get(name) is not None:
            yield line("cost", name, run.measured[name])
    for series in run.metric_series.all():
        for step, value in series.points():
            yield line("curve", series.name, value, step)
