"""The Compare page: chosen runs as arms of an unsaved study, side by side, and row by row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from django.db.models import prefetch_related_objects
from django.http import Http404, HttpResponse, QueryDict
from django.shortcuts import render
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET

from dashboard.charts import curves
from dashboard.charts.study_charts import shorten
from dashboard.downloads import csv_file, csv_text, json_file
from dashboard.gate import Request
from dashboard.models import Role, SavedView, TrainingRun
from dashboard.models.accounts.project import parse_id
from dashboard.models.catalog.metrics import METRICS
from dashboard.models.evaluations import forgetting
from dashboard.models.evaluations.answers import ORDERS, AnswerQuery, answer_page, answer_pairs
from dashboard.models.studies.results.comparison import ChosenArm, UnsavedStudy, arms_of
from dashboard.models.studies.results.export import CsvRow, comparison_dict, comparison_rows, run_rows
from dashboard.models.studies.results.fingerprint import runs_fingerprint
from dashboard.models.studies.results.limits import warnings
from dashboard.models.training.training_run import TrainingRunQuerySet
from dashboard.presenters.comparison_tables import (
    exact_matches,
    loss_table,
    preference_table,
    score_table,
    settings_table,
)
from dashboard.presenters.playground import try_url
from dashboard.presenters.study_page import result_figures
from dashboard.views.kept_parts import KeptParts

# More columns would be neither legible nor a page of some 100 kB.
MOST_COMPARED = 20
# Runs to choose from: on a page without runs, and below a comparison.
RUNS_OFFERED, OTHERS_OFFERED = 100, 25
ITEMS_SHOWN = 20
# The x axis of the curves: name of a run's measured total -> label.
X_AXES = {
    "step": gettext_lazy("Steps"),
    "tokens": gettext_lazy("Tokens"),
    "seconds": gettext_lazy("Seconds"),
}
# The query parameters of the page.
PARAMETERS = ("runs", "metric", "reference", "cost", "show", "x", "arm", "beside", "won", "sort", "q")


@require_GET
def index(request: Request) -> HttpResponse:
    """Show the runs of ?runs=1,2,3 (or repeated), or a list of runs; every choice is in the address.

    Runs that were deleted since are named; 404 if none is left.
    """
    wanted = requested_keys(request)
    visible = TrainingRun.objects.visible_to(request.user).filter(pk__in=wanted)
    found = set(visible.values_list("pk", flat=True))
    keys = [pk for pk in wanted if pk in found]
    missing = [pk for pk in wanted if pk not in found]
    if missing and not keys:
        raise Http404
    keys, left_out = keys[:MOST_COMPARED], keys[MOST_COMPARED:]
    if missing or left_out:
        # Every link of the page leads to the runs that it shows.
        query = request.GET.copy()
        query["runs"] = ",".join(map(str, keys))
        request.GET = query  # type: ignore[assignment]
    views = SavedView.objects.filter(project=request.project, page=SavedView.Page.COMPARE)
    context = {
        "runs": keys,
        "missing": missing,
        "left_out": left_out,
        "query": ",".join(map(str, keys)),
        "saved_views": views,
        "address": address_of(request),
        "only": request.GET.get("show") == "differences",
        "may_edit": request.user.has_role(Role.EDITOR, request.project.pk),
        # Beside a comparison they are fetched when the list is opened.
        **(compared_context(request, keys) if keys else offered_context(request, [], RUNS_OFFERED)),
    }
    return render(request, "studies/compare/index.html", context)


def compared_context(request: Request, keys: list[int]) -> dict[str, Any]:
    """Return what the page shows of chosen runs; it is read and drawn anew when one of their rows changes."""
    parts = KeptParts(request, runs_fingerprint(keys), lambda: chosen(request))
    return {
        "comparison": parts.part(
            "studies/compare/_comparison.html", partial(measured_context, request), has_texts=False
        ),
        "try_url": parts.once("try_url", adapters_url, keys),
    }


def adapters_url(runs: list[TrainingRun]) -> str:
    """Return the address of the playground with the adapters of these runs."""
    return try_url(run.adapter for run in runs if hasattr(run, "adapter"))


@require_GET
def offered(request: Request) -> HttpResponse:
    """Show the runs to choose from beside a comparison."""
    keys = [run.pk for run in chosen(request, TrainingRun.objects.only("pk"))]
    context = offered_context(request, keys, OTHERS_OFFERED)
    return render(request, "studies/compare/_offered.html", context)


def offered_context(request: Request, keys: list[int], limit: int) -> dict[str, Any]:
    """Return the newest runs of the project, and which of them are chosen."""
    runs = TrainingRun.objects.visible_to(request.user).filter(project=request.project)
    runs = runs.select_related("job", "target_module_config", "dataset_version__dataset")
    runs = runs.defer("spec", "forecast", "measured", "job__spec", "dataset_version__report")
    return {"offered": runs.order_by("-pk")[:limit], "chosen": keys}


@require_GET
def items(request: Request) -> HttpResponse:
    """Show the answers of one chosen arm beside another's, row by row."""
    runs = chosen(request)
    study = study_of(request, runs) if runs else None
    found = items_context(request, study) if study else {}
    if not found:
        raise Http404
    return render(
        request, "studies/compare/items.html", {"study": study, "address": address_of(request), **found}
    )


@require_GET
def loss_curves(request: Request) -> HttpResponse:
    """Show the curves of the chosen runs, which the page fetches when a reader comes to them."""
    runs = chosen(request, TrainingRun.objects.select_related("target_module_config"))
    if not runs:
        raise Http404
    across = request.GET.get("x", "")
    across = across if across in X_AXES else next(iter(X_AXES))
    arms = arms_of(runs)
    shown = []
    for name in curves.CURVES:
        curve = curves.comparison(runs, name)
        table = {"rows": curve.pop("table"), "labels": [series["label"] for series in curve["series"]]}
        series = scaled(by_arm(curve["series"], arms), runs, across)
        shown += [(name, json.dumps(series, separators=(",", ":")), table)] if table["rows"] else []
    context = {"curves": shown, "across": across, "across_label": X_AXES[across], "acrosses": X_AXES}
    return render(request, "studies/compare/_curves.html", context)


def measured_context(request: Request, runs: list[TrainingRun]) -> dict[str, Any]:
    """Return everything that the page shows of chosen runs."""
    study = study_of(request, runs)
    settings, only = settings_table(runs), request.GET.get("show") == "differences"
    losses = loss_table(runs)
    context = {
        "study": study,
        "runs": runs,
        "only": only,
        "address": address_of(request),
        "warnings": warnings(study),
        "settings": [row for row in settings if row["differs"] or not only],
        "same": sum(not row["differs"] for row in settings),
        "scores": score_table(runs),
        "losses": losses,
        "preferences": preference_table(runs),
        "has_curves": any(one["train"] or one["validation"] for one in losses),
    }
    return context | verdict_context(request, study, runs)


def study_of(request: Request, runs: list[TrainingRun]) -> UnsavedStudy:
    """Return the unsaved study of the runs, by the metric and against the reference of the address."""
    return UnsavedStudy.of(runs, request.GET.get("metric", ""), request.GET.get("reference", ""))


def verdict_context(request: Request, study: UnsavedStudy, runs: list[TrainingRun]) -> dict[str, Any]:
    """Return the sentence and its figures; without scores of single rows, each run's exact match alone."""
    if not study.result.arms:
        return {"exact_matches": exact_matches(runs)}
    forgotten = forgetting.chosen_runs_forgetting(study)
    return {
        **result_figures(study, forgotten, request.GET.get("cost", "")),
        "metrics": {name: METRICS[name].label for name in study.metrics},
        "carried_choices": other_choices(request, "metric", "reference"),
    }


def items_context(request: Request, study: UnsavedStudy) -> dict[str, Any]:
    """Return single rows of one arm beside the reference's."""
    sides = {str(arm.first.pk): (arm.name, arm.evaluations()) for arm in study.scored}
    sides |= {f"base-{one.pk}": (name, {0: one}) for name, one in study.base_evaluations.items()}
    arms = [key for key in sides if not key.startswith("base")]
    pinned = str(study.reference_arm.first.pk)
    first = choose(sorted(arms, key=lambda key: key == pinned), request.GET.get("arm", ""))
    beside = choose([key for key in (pinned, *sides) if key != first], request.GET.get("beside", ""))
    if not study.result.arms or not first or not beside:
        return {}
    (name, one), (other_name, other) = sides[first], sides[beside]
    lower = study.lower_is_better
    query = request.GET
    answer_query = AnswerQuery(
        query.get("won", ""),
        query.get("q", "")[:120],
        query.get("sort", ""),
        parse_id(query.get("page", "")) or 1,
    )
    pairs = answer_pairs(study.metric, one, other, lower_is_better=lower)
    page = answer_page(pairs, one, other, answer_query, size=ITEMS_SHOWN, lower_is_better=lower)
    return {
        "carried_items": other_choices(request, "arm", "beside", "won", "sort", "q"),
        "sides": [(key, side[0]) for key, side in sides.items()],
        "arm_keys": arms,
        "first": first,
        "beside": beside,
        "first_name": name,
        "beside_name": other_name,
        "asked": answer_query,
        "orders": ORDERS,
        "items": page,
    }


def choose(keys: Sequence[str], wanted: str) -> str:
    """Return the wanted key if it exists, else the first; "" without any."""
    return wanted if wanted in keys else next(iter(keys), "")


def by_arm(series: list[dict[str, Any]], all_arms: list[ChosenArm]) -> list[dict[str, Any]]:
    """Give the seeds of an arm one colour, and the first of them the arm's name."""
    looks = curves.colours(arm.first.pk for arm in all_arms)
    arms: dict[int, ChosenArm] = {run.pk: arm for arm in all_arms for run in [*arm.runs, *arm.repeats]}
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
    """Return the curves over tokens or seconds instead of steps, without runs that did not measure them.

    A run stores only its totals, so all of its steps count as equally long.
    """
    if across == "step":
        return series
    factors = {
        run.pk: run.measured[across] / run.ended_step
        for run in runs
        if run.ended_step and run.measured.get(across)
    }
    return [
        {
            **one,
            "points": [(curves.short(step * factors[one["run"]]), value) for step, value in one["points"]],
        }
        for one in series
        if one["run"] in factors
    ]


def other_choices(request: Request, *own: str) -> list[tuple[str, str]]:
    """Return the parameters that a form keeps as hidden fields: all but its own."""
    known = known_parameters(request.GET)
    return [(name, value) for name in known if name not in own for value in known.getlist(name)]


def address_of(request: Request) -> str:
    """Return the known parameters of the page as a query."""
    return known_parameters(request.GET).urlencode(safe=",")


def known_parameters(query: QueryDict) -> QueryDict:
    """Return the parameters of this page, without the page number of its list."""
    kept = QueryDict(mutable=True)
    for name in PARAMETERS:
        for value in query.getlist(name):
            if value:
                kept.appendlist(name, value)
    return kept


@require_GET
def export(request: Request) -> HttpResponse:
    """Return everything on the page as one long table: run, kind, name, step, value."""
    runs = chosen(request)
    rows: list[CsvRow] = [["run", "name", "kind", "measure", "step", "value"]]
    rows += [row for run in runs for row in run_rows(run)]
    if runs:
        rows += comparison_rows(study_of(request, runs))
    prefetch_related_objects(runs, "metric_series__chunks")
    return csv_file("compare.csv", rows, "".join(curve_lines(run) for run in runs))


def curve_lines(run: TrainingRun) -> str:
    """Return the curves of a run as lines of the CSV, most of whose cells are equal."""
    lines = []
    for series in run.metric_series.all():
        start = csv_text([[run.pk, run.name, "curve", series.name]]).removesuffix("\r\n")
        # Values are stored as 32 bits, which nine digits identify.
        lines += [f"{start},{step},{value:.9g}\r\n" for step, value in series.points()]
    return "".join(lines)


@require_GET
def numbers(request: Request) -> HttpResponse:
    """Return the comparison as JSON, with every row's score, so that it can be computed again."""
    runs = chosen(request)
    if not runs:
        raise Http404
    study = study_of(request, runs)
    return json_file("compare.json", comparison_dict(study))


def chosen(request: Request, runs: TrainingRunQuerySet | None = None) -> list[TrainingRun]:
    """Return the requested runs in their order; 404 if the user may not see one of them.

    `runs`: how to read them; by default with everything that a comparison shows.
    """
    wanted = requested_keys(request)
    if runs is None:
        runs = TrainingRun.objects.with_facts().with_scores().select_related("study_arm")
        runs = runs.defer("base_model__census", "job__spec")
    found = {run.pk: run for run in runs.visible_to(request.user).filter(pk__in=wanted)}
    if len(found) < len(wanted):
        raise Http404
    return [found[pk] for pk in wanted]


def requested_keys(request: Request) -> list[int]:
    """Return the keys of the requested runs in their order; 404 for one that no run can have."""
    parts = [part.strip() for text in request.GET.getlist("runs") for part in text.split(",")]
    keys = dict.fromkeys(parse_id(part) for part in parts if part)
    if None in keys:
        raise Http404
    return [key for key in keys if key is not None]
