"""Scores that a run or a study lacks: what its page says of them, and asking for them again."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_POST

from dashboard.gate import Request
from dashboard.models import OverBudget, Role, Study, TrainingRun
from dashboard.models.evaluation import adapter_evaluation
from dashboard.models.rescoring import (
    ReevaluationRefused,
    Scope,
    needs_evaluation,
    reevaluate,
    run_for_base_evaluation,
    unscored,
)
from workers.errors import SCORE, advice


@require_POST
def of_run(request: Request, pk: int) -> HttpResponse:
    """Score a run's adapter again."""
    runs = TrainingRun.objects.select_related("study_arm__study")
    return scored(request, runs.fetch(request.user, pk, Role.EDITOR))


@require_POST
def of_study(request: Request, pk: int) -> HttpResponse:
    """Score again what a study lacks."""
    return scored(request, Study.objects.fetch(request.user, pk, Role.EDITOR))


def scored(request: Request, scope: Scope) -> HttpResponse:
    """Its page, with the scores in the queue or with the reason why not."""
    try:
        reevaluate(scope, request.user)
    except (ReevaluationRefused, OverBudget) as refusal:
        messages.warning(request, str(refusal))
    return redirect(scope)


def unscored_run_notice(run: TrainingRun) -> dict[str, Any] | None:
    """Why a run's adapter has no scores, and what helps; None where it has them or they are to come."""
    if not needs_evaluation(run):
        return None
    found = adapter_evaluation(run)
    error = (found.error if found else None) or {}
    return {
        "state": found.state if found else "",
        "message": error.get("message", ""),
        "advice": advice(error.get("code", ""), SCORE),
    }


def unscored_study_notice(study: Study) -> dict[str, Any] | None:
    """How many adapters of a study have no scores, and each reason once; 0: the base model alone has none."""
    missing = unscored(study)
    if not missing and not (study.is_over and run_for_base_evaluation(study)):
        return None
    reasons = {str(one): one for one in filter(None, map(unscored_run_notice, missing))}
    return {"count": len(missing), "reasons": list(reasons.values())}
