"""Re-evaluation over the API."""

from __future__ import annotations

from dashboard.api.access import Call, do_once
from dashboard.api.refusals import Refusal
from dashboard.models import Study
from dashboard.models.studies.re_evaluation import ReevaluationRefused, Scope, reevaluate


def submit_reevaluation(request: Call, scope: Scope) -> None:
    """Queue the missing evaluations. Refuses with 409 if there is nothing to evaluate."""
    kind = "study" if isinstance(scope, Study) else "run"
    try:
        do_once(request, f"score {kind} {scope.pk}", lambda: reevaluate(scope, request.auth.user))
    except ReevaluationRefused as refusal:
        raise Refusal(409, "not_scorable", str(refusal)) from refusal
