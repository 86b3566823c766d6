"""What a finished study says: its verdict with every number behind it, as page and as files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from dashboard import forgetting_charts, study_charts
from dashboard.downloads import csv_file, json_file
from dashboard.forms.study_results import DecisionForm, ShareLinkForm
from dashboard.gate import Request
from dashboard.models import Decision, Job, Role, ShareLink, State, Study, User, forgetting
from dashboard.models.compute_use import used_seconds
from dashboard.models.study_export import scores_shown, whole
from dashboard.models.study_result import base_ms_per_token, costs_of
from dashboard.models.study_words import (
    amount,
    interval,
    later,
    measured_beside,
    outcome_in_words,
    recommended,
    sentence,
    unmeasured,
)
from dashboard.study_charts import COSTS, config_label, quality
from dashboard.views.compare import settings_table
from workers.verdicts import MIN_SEEDS


def result_context(study: Study, query: Mapping[str, str], reader: User | None = None) -> dict[str, Any]:
    """Everything that the verdict shows; `query` holds the reader's choices. Empty before the end."""
    if not study.is_over or not study.result.get("arms"):
        return {}
    costs = costs_known(study)
    cost = query.get("cost", "")
    cost = cost if cost in costs else next(iter(costs), "")
    only = query.get("only") != "all"
    settings = settings_of(study)
    forgotten = forgetting.study_forgetting(study)
    return {
        "sentence": sentence(study),
        "recommended": recommended(study),
        "margin_words": amount(study, study.margin),
        "rows_compared": study.result.get("items", 0),
        "groups_compared": study.result.get("groups", study.result.get("items", 0)),
        "indicative": len(study.seeds) < MIN_SEEDS,
        "intervals": study_charts.intervals(study),
        "deltas": deltas(study),
        "differences": study_charts.differences(study),
        "base_ms_per_token": base_ms_per_token(study.final_runs()),
        "costs": costs,
        "pareto": study_charts.pareto(study, cost) if cost else None,
        "curves": study_charts.validation_curves(study),
        "forgetting": forgetting_charts.table(forgotten),
        "forgotten": forgetting_charts.plots(
            study, forgotten, {arm["name"]: arm["metric"] for arm in study.result["arms"]}
        ),
        "settings": [row for row in settings if row["differs"] or not only],
        "settings_same": [row for row in settings if not row["differs"]],
        "settings_arms": [arm for arm in study.arms.all() if arm.final_runs()],
        "only": only,
        "unmeasured": unmeasured(study),
        "measured_beside": measured_beside(study),
        "times": times_of(study),
        "later": later(study),
        "decisions": Decision.objects.with_facts().filter(study=study),
        **(acts_of(study, reader) if reader else {}),
    }


def times_of(study: Study) -> list[dict[str, Any]]:
    """Training and scoring: what was forecast, and how long devices were occupied by their jobs."""
    parts = (
        ("training", _("Training"), Job.Kind.TRAIN),
        ("scoring", _("Scoring the test rows"), Job.Kind.EVALUATE),
    )
    return [
        {"label": label, "span": span, "measured": used_seconds(study.jobs().filter(kind=kind))}
        for part, label, kind in parts
        if (span := study.forecast.get(part)) and study.is_over
    ]


def acts_of(study: Study, reader: User) -> dict[str, Any]:
    """What this reader may do with the result: editors decide, managers also approve and share."""
    roles = {role: reader.projects(role).filter(pk=study.project_id).exists() for role in Role}
    links = ShareLink.objects.working().managed_by(reader).filter(study=study).select_related("study")
    return {
        "decision_form": DecisionForm(study) if roles[Role.EDITOR] else None,
        "may_approve": roles[Role.MANAGER],
        "share_form": ShareLinkForm() if roles[Role.MANAGER] else None,
        "share_links": links,
    }


def deltas(study: Study) -> list[dict[str, Any]]:
    """One row per arm: its difference to the reference in words, and what it costs. Failed arms stay."""
    found = {arm["name"]: arm for arm in study.result.get("arms", [])}
    compared = {one["arm"]: one for one in study.result.get("comparisons", [])}
    places = study_charts.differences(study)["rows"]
    rows = []
    for arm in study.arms.all():
        one, own = compared.get(arm.name), found.get(arm.name)
        rows.append(
            {
                "arm": arm,
                "config": config_label(arm),
                "is_reference": arm.name == study.reference,
                "error": arm.error,
                "was_stopped": not own and any(run.outcome == State.CANCELLED for run in arm.final_runs()),
                "quality": quality(study, own["metric"]["mean"]) if own else "–",
                "seeds": len(own["seeds"]) if own else 0,
                "difference": amount(study, one["difference"], signed=True) if one else "",
                "interval": interval(study, one) if one else "",
                "p": p_in_words(one["p_adjusted"]) if one else "",
                "outcome": outcome_in_words(one) if one else "",
                "kept": kept_in_words(one) if one else None,
                "place": places.get(arm.name),
                **costs_of(arm),
            }
        )
    return rows


def costs_known(study: Study) -> dict[str, Any]:
    """What the arms cost, as far as it was measured: older runs do not know all of it."""
    measured = [costs_of(arm) for arm in study.arms.all()]
    return {name: of for name, of in COSTS.items() if any(costs.get(name) is not None for costs in measured)}


def p_in_words(p: float) -> str:
    """Three digits, as fewer draws cannot tell smaller ones apart."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def kept_in_words(one: dict[str, Any]) -> dict[str, str] | None:
    """Which part of the reference's gain over the base model an arm kept; None where there was no gain."""
    kept = one.get("kept")
    if not kept:
        return None
    share = {key: 100 * value for key, value in kept.items()}
    return {
        "mean": _("%(mean).0f %%") % share,
        "interval": _("(%(low).0f to %(high).0f %%)") % share,
    }


def settings_of(study: Study) -> list[dict[str, Any]]:
    """One row per setting, a value for each arm; the seed is a column of the study, no setting of an arm."""
    firsts = [runs[0] for arm in study.arms.all() if (runs := arm.final_runs())]
    return [row for row in settings_table(firsts) if row["name"] != "seed"]


def not_yet(request: Request, study: Study) -> HttpResponse:
    """Back to the study, with the reason why there is no file."""
    messages.info(request, _("Scores are told when all runs of the study have ended."))
    return redirect(study)


@require_GET
def deltas_csv(request: Request, pk: int) -> HttpResponse:
    """The table of differences as CSV, in the metric's unit."""
    study = Study.objects.with_facts().fetch(request.user, pk)
    if not study.scores_are_open:
        return not_yet(request, study)
    compared = {one["arm"]: one for one in study.result.get("comparisons", [])}
    header = ["arm", "target_modules", "seeds", "metric", "mean", "low", "high", "reference", "difference"]
    header += ["difference_low", "difference_high", "p_adjusted", "outcome", "kept_gain", *COSTS]
    header += ["general_loss_rise", "general_accuracy"]
    header += ["general_accuracy_change", "general_accuracy_change_low", "general_accuracy_change_high"]
    rows: list[list[str | float | None]] = [list(header)]
    found = {arm["name"]: arm for arm in study.result.get("arms", [])}
    forgotten = forgetting.study_forgetting(study)
    for arm in study.arms.all():
        general = forgotten[arm.name].facts()
        own, one, costs = found.get(arm.name), compared.get(arm.name, {}), costs_of(arm)
        rows.append(
            [
                arm.name,
                arm.target_module_config.name,
                len(own["seeds"]) if own else 0,
                study.metric,
                *((own["metric"][key] for key in ("mean", "low", "high")) if own else (None,) * 3),
                study.reference,
                *(one.get(key) for key in ("difference", "low", "high", "p_adjusted", "outcome")),
                (one.get("kept") or {}).get("mean"),
                *(costs[name] for name in COSTS),
                *(general[name] for name in ("general_loss_rise", "general_accuracy")),
                *((general["general_accuracy_change"] or {}).get(end) for end in ("mean", "low", "high")),
            ]
        )
    return csv_file(f"study-{study.pk}.csv", rows)


@require_GET
def scores_csv(request: Request, pk: int) -> HttpResponse:
    """Every score behind the verdict; the base model has no seed."""
    study = Study.objects.with_facts().fetch(request.user, pk)
    if not study.scores_are_open:
        return not_yet(request, study)
    header = ["arm", "seed", "item", "group", "value"]
    rows: list[list[str | float | None]] = [list(header)]
    rows += [[one[name] for name in header] for one in scores_shown(study)]
    return csv_file(f"study-{study.pk}-scores.csv", rows)


@require_GET
def whole_json(request: Request, pk: int) -> HttpResponse:
    """Settings, numbers and every score: enough to recompute the verdict again."""
    study = Study.objects.with_facts().fetch(request.user, pk)
    if not study.scores_are_open:
        return not_yet(request, study)
    return json_file(f"study-{study.pk}.json", whole(study))
