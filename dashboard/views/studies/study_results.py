"""The result of a study: what its page and its report show, and the same numbers as files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from dashboard.charts.study_charts import COSTS, validation_curves
from dashboard.downloads import csv_file, json_file
from dashboard.forms.studies.study_results import DecisionForm, ShareLinkForm
from dashboard.gate import Request
from dashboard.models import Decision, Role, ShareLink, Study, User
from dashboard.models.evaluations import forgetting
from dashboard.models.studies.results.export import export_dict, item_scores
from dashboard.models.studies.results.fingerprint import study_fingerprint
from dashboard.models.studies.results.limits import measured_beside, unmeasured
from dashboard.models.studies.results.result import costs_of
from dashboard.models.studies.results.verdict_sentence import recommended_arm, verdict_parts
from dashboard.presenters.comparison_tables import settings_table
from dashboard.presenters.study_grid import grid_of
from dashboard.presenters.study_page import result_figures, times_of
from dashboard.views.evaluations.evaluations import unscored_study_notice
from dashboard.views.kept_parts import KeptParts
from workers.statistics.verdicts import MIN_SEEDS


def result_context(study: Study, query: Mapping[str, str]) -> dict[str, Any]:
    """Return what shows the verdict; `query` holds the reader's choices. Empty before the end."""
    if not study.is_over:
        return {}
    if not study.result.arms:
        return {"verdict": verdict_parts(study)}
    only = query.get("only") != "all"
    settings = settings_of(study)
    return {
        **result_figures(study, forgetting.study_forgetting(study), query.get("cost", "")),
        "recommended": recommended_arm(study),
        "indicative": len(study.begun_seeds) < MIN_SEEDS,
        "curves": validation_curves(study),
        "settings": [row for row in settings if row["differs"] or not only],
        "settings_same": [row for row in settings if not row["differs"]],
        "settings_arms": [arm for arm in study.arm_list if arm.final_runs()],
        "only": only,
        "unmeasured": unmeasured(study),
        "measured_beside": measured_beside(study),
        "times": times_of(study),
    }


def kept_parts(request: HttpRequest, study: Study) -> KeptParts[Study]:
    """Return the parts of an ended study, of which only the names have been read."""
    return KeptParts(request, study_fingerprint(study), lambda: Study.objects.with_facts().get(pk=study.pk))


def ended_context(study: Study, parts: KeptParts[Study], reader: User) -> dict[str, Any]:
    """Return the result for a reader: editors decide, managers also approve and share."""
    query = parts.request.GET
    own = reader.roles().get(study.project_id)
    may_edit, is_manager = (own in role.and_above() for role in (Role.EDITOR, Role.MANAGER))
    has_result = bool(study.result.arms)
    decisions = list(Decision.objects.with_facts().filter(study=study)) if has_result else []
    is_editor, is_manager = has_result and may_edit, has_result and is_manager
    has_decisions = bool(decisions) or is_editor
    links = ShareLink.objects.working().managed_by(reader).filter(study=study).select_related("study")
    return {
        "has_result": has_result,
        "result": parts.part(
            "studies/_result.html",
            lambda whole: {**result_context(whole, query), "study": whole, "has_decisions": has_decisions},
            has_decisions,
        ),
        "grid_part": parts.part("studies/_grid.html", lambda whole: {"study": whole, "grid": grid_of(whole)}),
        "error": parts.once("error", lambda whole: whole.error),
        "unscored": parts.once("unscored", unscored_study_notice),
        "decisions": decisions,
        "decision_fields": parts.part(
            "studies/_decide_fields.html", lambda whole: {"form": DecisionForm(whole)}
        )
        if is_editor
        else "",
        "may_edit": may_edit,
        "may_approve": is_manager,
        "share_form": ShareLinkForm() if is_manager else None,
        "share_links": links if is_manager else [],
    }


def settings_of(study: Study) -> list[dict[str, Any]]:
    """Return one row per setting with a value for each arm, without the seed, which belongs to a run."""
    firsts = [runs[0] for arm in study.arm_list if (runs := arm.final_runs())]
    for run in firsts:
        run.base_model, run.dataset_version = study.base_model, study.dataset_version
    return [row for row in settings_table(firsts) if row["name"] != "seed"]


def not_yet(request: Request, study: Study) -> HttpResponse:
    """Redirect to the study, with the reason why there is no file."""
    messages.info(request, _("Scores are available when all runs of the study have ended."))
    return redirect(study)


@require_GET
def deltas_csv(request: Request, pk: int) -> HttpResponse:
    """Return the table of differences as CSV, in the metric's unit."""
    study = Study.objects.with_facts().fetch(request.user, pk)
    if not study.scores_are_open:
        return not_yet(request, study)
    header = ["arm", "target_modules", "seeds", "metric", "mean", "low", "high", "reference", "difference"]
    header += ["difference_low", "difference_high", "p_adjusted", "outcome", "look", "kept_gain", *COSTS]
    header += ["general_loss_rise", "general_accuracy"]
    header += ["general_accuracy_change", "general_accuracy_change_low", "general_accuracy_change_high"]
    rows: list[list[str | float | None]] = [list(header)]
    result = study.result
    forgotten = forgetting.study_forgetting(study)
    for arm in study.arm_list:
        general = forgotten[arm.name].facts()
        own, one, costs = result.of_arm(arm), result.comparison_of(arm), costs_of(arm.final_runs())
        rows.append(
            [
                arm.name,
                arm.target_module_config.name,
                len(own.seeds) if own else 0,
                study.metric,
                *((own.metric.mean, own.metric.low, own.metric.high) if own else (None,) * 3),
                study.reference,
                *((one.difference, one.low, one.high, one.p_adjusted, one.outcome) if one else (None,) * 5),
                one.look if one else None,
                one.kept.mean if one and one.kept else None,
                *(costs[name] for name in COSTS),
                *(general[name] for name in ("general_loss_rise", "general_accuracy")),
                *((general["general_accuracy_change"] or {}).get(end) for end in ("mean", "low", "high")),
            ]
        )
    return csv_file(f"study-{study.pk}.csv", rows)


@require_GET
def scores_csv(request: Request, pk: int) -> HttpResponse:
    """Return every score behind the verdict; the base model has no seed."""
    study = Study.objects.with_facts().fetch(request.user, pk)
    if not study.scores_are_open:
        return not_yet(request, study)
    header = ["arm", "seed", "item", "group", "value"]
    rows: list[list[str | float | None]] = [list(header)]
    rows += [[one[name] for name in header] for one in item_scores(study)]
    return csv_file(f"study-{study.pk}-scores.csv", rows)


@require_GET
def whole_json(request: Request, pk: int) -> HttpResponse:
    """Return settings, numbers and every score: enough to compute the verdict again."""
    study = Study.objects.with_facts().fetch(request.user, pk)
    if not study.scores_are_open:
        return not_yet(request, study)
    exported = export_dict(study)
    exported["study"] |= {"comparisons": [asdict(one) for one in study.result.comparisons]}
    return json_file(f"study-{study.pk}.json", exported)
