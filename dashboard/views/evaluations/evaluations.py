"""Re-evaluation of a run or a study, and the notice about missing scores on its page."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_POST

from dashboard.gate import Request
from dashboard.models import OverBudget, Role, Study, TrainingRun
from dashboard.models.evaluations.evaluation import adapter_evaluation
from dashboard.models.studies.re_evaluation import (
    ReevaluationRefused,
    Scope,
    needs_evaluation,
    reevaluate,
    run_for_base_evaluation,
    runs_to_evaluate,
)
from workers.contract.errors import REEVALUATE, advice


@require_POST
def reevaluate_run(request: Request, pk: int) -> HttpResponse:
    """Re-evaluate a run's adapter."""
    runs = TrainingRun.objects.select_related("study_arm__study")
    return reevaluate_and_redirect(request, runs.fetch(request.user, pk, Role.EDITOR))


@require_POST
def reevaluate_study(request: Request, pk: int) -> HttpResponse:
    """Re-evaluate the adapters of a study that have no scores."""
    return reevaluate_and_redirect(request, Study.objects.fetch(request.user, pk, Role.EDITOR))


def reevaluate_and_redirect(request: Request, scope: Scope) -> HttpResponse:
    """Queue the missing evaluations, or show why there are none to queue."""
    try:
        reevaluate(scope, request.user)
    except (ReevaluationRefused, OverBudget) as refusal:
        messages.warning(request, str(refusal))
    return redirect(scope)


def unscored_run_notice(run: TrainingRun) -> dict[str, Any] | None:
    """Return why a run's adapter has no scores, and advice; None if it has them or they are to come."""
    if not needs_evaluation(run):
        return None
    evaluation = adapter_evaluation(run)
    error = (evaluation.error if evaluation else None) or {}
    return {
        "state": evaluation.state if evaluation else "",
        "message": error.get("message", ""),
        "advice": advice(error.get("code", ""), REEVALUATE),
    }


def unscored_study_notice(study: Study) -> dict[str, Any] | None:
    """Return how many adapters have no scores (0: only the base model has none), and each reason once."""
    runs = runs_to_evaluate(study)
    if not runs and not (study.is_over and run_for_base_evaluation(study)):
        return None
    reasons = {str(notice): notice for run in runs if (notice := unscored_run_notice(run))}
    return {"count": len(runs), "reasons": list(reasons.values())}
