"""The Compare page: chosen runs as arms of an unsaved study, side by side, and row by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.http import Http404, HttpResponse, QueryDict
from django.shortcuts import render
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET

from dashboard.charts import curves
from dashboard.charts.study_charts import shorten
from dashboard.downloads import csv_file, json_file
from dashboard.forms.training.hyperparameters import format_value
from dashboard.gate import Request
from dashboard.models import MetricSeries, Role, SavedView, State, TrainingRun
from dashboard.models.catalog.metrics import METRICS
from dashboard.models.evaluations import forgetting
from dashboard.models.evaluations.answers import ORDERS, AnswerQuery, answer_page, answer_pairs
from dashboard.models.studies.limits import warnings
from dashboard.models.studies.results.comparison import ChosenArm, UnsavedStudy
from dashboard.models.studies.results.export import score_rows
from dashboard.models.studies.results.text import verdict_sentence
from dashboard.presenters.study_page import ResultPage
from dashboard.views.studies.study_items import page_number
from workers.contract.hyperparameters import SETTINGS

RUNS_OFFERED = 100
ITEMS_SHOWN = 20
# Of a run's measured values, those that are its cost.
COSTS_EXPORTED = ("wall_seconds", "tokens_per_second", "peak_memory_bytes")

# What curves can be drawn over: name of the run's measured sum -> words.
ACROSS = {
    "step": gettext_lazy("Steps"),
    "tokens": gettext_lazy("Tokens"),
    "seconds": gettext_lazy("Seconds"),
}
# The parts of the address that say what the page shows.
CHOICES = ("runs", "metric", "reference", "cost", "show", "x", "arm", "beside", "won", "sort", "q")


@require_GET
def index(request: Request) -> HttpResponse:
    """Show the runs of ?runs=1,2,3 (or repeated), or a list of runs; every choice is in the address."""
    runs = chosen(request)
    offered = TrainingRun.objects.with_facts().visible_to(request.user).filter(project=request.project)
    views = SavedView.objects.visible_to(request.user).filter(project=request.project)
    context = {
        "runs": runs,
        "offered": offered.order_by("-pk")[:RUNS_OFFERED],
        "chosen": [run.pk for run in runs],
        "query": ",".join(str(run.pk) for run in runs),
        "saved_views": views,
        "address": address_of(request),
        "only": request.GET.get("show") == "differences",
        "may_edit": request.user.projects(Role.EDITOR).filter(pk=request.project.pk).exists(),
    }
    if runs:
        context |= measured_context(request, runs)
    return render(request, "studies/compare/index.html", context)


def measured_context(request: Request, runs: list[TrainingRun]) -> dict[str, Any]:
    """Return everything that the page shows of chosen runs."""
    study = study_of(request, runs)
    settings, only = settings_table(runs), request.GET.get("show") == "differences"
    across = request.GET.get("x", "")
    across = across if across in ACROSS else next(iter(ACROSS))
    compared = {name: curves.comparison(runs, name) for name in curves.CURVES}
    tables: dict[str, Any] = {}
    for name, curve in compared.items():
        tables[name] = {"rows": table_of(curve), "labels": [one["label"] for one in curve["series"]]}
        curve["series"] = scaled(by_arm(curve["series"], study), runs, across)
    context = {
        "study": study,
        "warnings": warnings(study),
        "settings": [row for row in settings if row["differs"] or not only],
        "same": sum(not row["differs"] for row in settings),
        "scores": score_table(runs),
        "losses": loss_table(runs),
        "curves": [(name, curve, tables[name]) for name, curve in compared.items() if tables[name]["rows"]],
        "across": across,
        "across_label": ACROSS[across],
        "acrosses": ACROSS,
    }
    return context | verdict_context(request, study, runs) | items_context(request, study)


def study_of(request: Request, runs: list[TrainingRun]) -> UnsavedStudy:
    """Return the unsaved study of the runs, by the metric and against the reference of the address."""
    return UnsavedStudy.of(runs, request.GET.get("metric", ""), request.GET.get("reference", ""))


def verdict_context(request: Request, study: UnsavedStudy, runs: list[TrainingRun]) -> dict[str, Any]:
    """Return the sentence and its figures; without scores of single rows, each run's exact match alone."""
    if not study.result.arms:
        return {"exact_matches": exact_matches(runs)}
    page = ResultPage(study, forgetting.chosen_runs_forgetting(study), request.GET.get("cost", ""))
    return {
        **page.context(),
        "metrics": {name: METRICS[name].label for name in study.metrics},
        "carried_choices": carried(request, "metric", "reference", "cost"),
    }


def items_context(request: Request, study: UnsavedStudy) -> dict[str, Any]:
    """Return single rows of one arm beside the reference's."""
    sides = {str(arm.first.pk): (arm.name, arm.evaluations()) for arm in study.scored}
    sides |= {f"base-{one.pk}": (name, {0: one}) for name, one in study.base_evaluations.items()}
    arms = [key for key in sides if not key.startswith("base")]
    pinned = str(study.reference_arm.first.pk)
    first = one_of(sorted(arms, key=lambda key: key == pinned), request.GET.get("arm", ""))
    beside = one_of([key for key in (pinned, *sides) if key != first], request.GET.get("beside", ""))
    if not study.result.arms or not first or not beside:
        return {}
    (name, one), (other_name, other) = sides[first], sides[beside]
    lower = study.lower_is_better
    query = request.GET
    asked = AnswerQuery(
        query.get("won", ""),
        query.get("q", "")[:120],
        query.get("sort", ""),
        page_number(query.get("page", "")),
    )
    pairs = answer_pairs(study.metric, one, other, lower_is_better=lower)
    found = answer_page(pairs, one, other, asked, size=ITEMS_SHOWN, lower_is_better=lower)
    return {
        "carried_items": carried(request, "arm", "beside", "won", "sort", "q"),
        "sides": [(key, side[0]) for key, side in sides.items()],
        "arm_keys": arms,
        "first": first,
        "beside": beside,
        "first_name": name,
        "beside_name": other_name,
        "asked": asked,
        "orders": ORDERS,
        "items": found,
    }


def one_of(keys: Sequence[str], wanted: str) -> str:
    """Return the wanted key if it exists, else the first; "" without any."""
    return wanted if wanted in keys else next(iter(keys), "")


def by_arm(series: list[dict[str, Any]], study: UnsavedStudy) -> list[dict[str, Any]]:
    """Give the seeds of an arm one colour, and the first of them the arm's name."""
    looks = curves.colours(arm.first.pk for arm in study.arm_list)
    arms: dict[int, ChosenArm] = {run.pk: arm for arm in study.arm_list for run in [*arm.runs, *arm.repeats]}
    named: set[int] = set()
    found = []
    for one in series:
        arm = arms[one["run"]]
        look = {**one, **looks[arm.first.pk]}
        if len(arm.runs) > 1:
            look["label"] = "" if arm.first.pk in named else shorten(arm.name, 16)
        named.add(arm.first.pk)
        found.append(look)
    return found


def scaled(series: list[dict[str, Any]], runs: Sequence[TrainingRun], across: str) -> list[dict[str, Any]]:
    """The curves over tokens or seconds instead of steps; runs that did not measure them are left out.

    A run knows its sums alone, so every step counts as long as the others.
    """
    if across == "step":
        return series
    factors = {
        run.pk: run.measured[across] / run.ended_step
        for run in runs
        if run.ended_step and run.measured.get(across)
    }
    return [
        {**one, "points": [(step * factors[one["run"]], value) for step, value in one["points"]]}
        for one in series
        if one["run"] in factors
    ]


def carried(request: Request, *asked: str) -> list[tuple[str, str]]:
    """Return the choices that a form carries along: all but its own fields."""
    known = known_part(request.GET)
    return [(name, value) for name in known if name not in asked for value in known.getlist(name)]


def address_of(request: Request) -> str:
    """Return the page's known choices as a query."""
    return known_part(request.GET).urlencode()


def known_part(query: QueryDict) -> QueryDict:
    """Return only the choices of this page, without the page number of its list."""
    kept = QueryDict(mutable=True)
    for name in CHOICES:
        for value in query.getlist(name):
            if value:
                kept.appendlist(name, value)
    return kept


@require_GET
def export(request: Request) -> HttpResponse:
    """Return everything on the page as one long table: run, kind, name, step, value."""
    runs = chosen(request)
    header = ["run", "name", "kind", "measure", "step", "value"]
    rows: list[list[str | float | None]] = [list(header), *(row for run in runs for row in lines(run))]
    if runs:
        rows += verdict_lines(study_of(request, runs))
    return csv_file("compare.csv", rows)


@require_GET
def numbers(request: Request) -> HttpResponse:
    """Return the comparison as JSON, with every row's score, so that it can be computed again."""
    runs = chosen(request)
    if not runs:
        raise Http404
    study = study_of(request, runs)
    arms, bases = study.scores()
    exported = {
        **study.result.to_dict(),
        "metric": study.metric,
        "lower_is_better": study.lower_is_better,
        "reference": study.reference,
        "sentence": verdict_sentence(study),
        "warnings": warnings(study),
        "forgetting": {name: one.facts() for name, one in forgetting.chosen_runs_forgetting(study).items()},
        "runs": [
            {"id": run.pk, "name": run.name, "arm": arm.name, "settings": run.flat_settings()}
            for arm in study.arm_list
            for run in [*arm.runs, *arm.repeats]
        ],
        "scores": score_rows(arms, bases, study.groups()),
    }
    return json_file("compare.json", exported)


def verdict_lines(study: UnsavedStudy) -> list[list[str | float | None]]:
    """Return the differences to the reference for the CSV, in the metric's unit."""
    first = {arm.name: arm.first.pk for arm in study.arm_list}
    lines: list[list[str | float | None]] = []
    for one in study.result.comparisons:
        against: list[str | float | None] = [first[one.arm], one.arm, f"against {one.reference}"]
        for name in ("difference", "low", "high", "p_adjusted", "outcome"):
            lines.append([*against, f"{study.metric} {name}", None, getattr(one, name)])
    for arm, forgotten in forgetting.chosen_runs_forgetting(study).items():
        for end, value in (forgotten.change() or {}).items():
            against = [first[arm], arm, "against the base model"]
            lines.append([*against, f"general_accuracy change {end}", None, value])
    return lines


def chosen(request: Request) -> list[TrainingRun]:
    """Return the requested runs in their order; 404 if the user may not see one of them."""
    parts = [part.strip() for text in request.GET.getlist("runs") for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 19 for part in parts if part):
        raise Http404
    wanted = list(dict.fromkeys(int(part) for part in parts if part))
    runs = TrainingRun.objects.with_facts().with_scores().visible_to(request.user)
    runs = runs.select_related("study_arm")
    found = {run.pk: run for run in runs.filter(pk__in=wanted)}
    if len(found) < len(wanted):
        raise Http404
    return [found[pk] for pk in wanted]


SOURCES = {
    "dataset": gettext_lazy("Dataset"),
    "base_model": gettext_lazy("Base model"),
    "target_modules": gettext_lazy("Target modules"),
}


def settings_table(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """One row per setting, with each run's value and whether they differ."""
    shown = [run.flat_settings() for run in runs]
    names = list(dict.fromkeys(name for values in shown for name in values))
    rows = []
    for name in names:
        values = [format_value(values.get(name)) for values in shown]
        rows.append(
            {
                "name": name,
                "label": SOURCES.get(name) or SETTINGS[name].label,
                "values": values,
                "differs": len(set(values)) > 1,
            }
        )
    return rows


def score_table(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Return one row per metric: base, adapter and difference of each run."""
    by_run = [{row.metric.name: row for row in curves.score_rows(run)} for run in runs]
    names = dict.fromkeys(name for rows in by_run for name in rows)
    return [{"label": METRICS[name].label, "cells": [rows.get(name) for rows in by_run]} for name in names]


def loss_table(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Return last training loss, last and lowest validation loss of each run."""
    stored = {
        (series.run_id, series.name): series
        for series in MetricSeries.objects.filter(run__in=runs, name__in=curves.CURVES)
    }
    return [
        {
            "train": stored.get((run.pk, "train/loss")),
            "validation": stored.get((run.pk, "validation/loss")),
        }
        for run in runs
    ]


def table_of(curve: dict[str, Any]) -> list[tuple[int, list[float | None]]]:
    """Return a chart as a table, a column per curve in the chart's order."""
    return curves.table({str(place): one["points"] for place, one in enumerate(curve["series"])})


def exact_matches(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Return each run's exact match before and after training, and the number of rows."""
    told = []
    for run in runs:
        row = next((row for row in curves.score_rows(run) if row.metric.name == "exact_match"), None)
        if row and row.base is not None and row.adapter is not None:
            ended = [one for one in run.evaluations.all() if one.state == State.SUCCEEDED]
            told.append({"run": run, "row": row, "rows": ended[-1].rows})
    return told


def lines(run: TrainingRun) -> Iterable[list[str | float | None]]:
    """Return everything about one run for the CSV."""

    def line(kind: str, measure: str, value: Any, step: int | None = None) -> list[str | float | None]:
        return [run.pk, run.name, kind, measure, step, value]

    yield line("state", "state", run.state)
    for name, value in run.flat_settings().items():
        yield line("setting", name, value)
    for subject, metrics in run.scores().items():
        for name, value in metrics.items():
            yield line(subject, name, value)
    for name, value in run.forecast.items():
        yield line("forecast", name, value)
    for name in COSTS_EXPORTED:
        if run.measured.get(name) is not None:
            yield line("cost", name, run.measured[name])
    for series in run.metric_series.all():
        for step, value in series.points():
            yield line("curve", series.name, value, step)
