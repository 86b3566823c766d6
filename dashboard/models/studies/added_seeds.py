"""Seeds that are added to a study: they count as further looks, and decided arms get none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from dashboard.models.evaluations.run_score import RunScore
from dashboard.models.jobs.compute_budget import require_budget
from dashboard.models.jobs.job_state import IllegalMove, State
from dashboard.models.studies.advance import queue_next
from dashboard.models.studies.forecast import PlanForecast, plan_forecast, seconds_queued
from dashboard.models.studies.looks import open_arms, take_look
from dashboard.models.studies.plan import check_seeds
from workers.contract.errors import SpecError

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User
    from dashboard.models.studies.study import Study


def add_seeds(study: Study, seeds: Sequence[int], by: User | None = None) -> None:
    """Train the reference and every open arm with more seeds and compare again; finished runs are kept.

    In an ended study they take the place of planned seeds that were not begun. Raises IllegalMove for a
    failed or stopped study, SpecError, TargetError or OverBudget.
    """
    look = take_look(study) if study.finished_at else None
    with transaction.atomic():
        study.lock()
        if study.state not in (State.SUCCEEDED, State.RUNNING, State.QUEUED):
            text = _("Seeds can be added to a running or finished study. This study's state: %(state)s.")
            raise IllegalMove(text % {"state": study.state})
        kept = study.kept_seeds
        fresh = [seed for seed in seeds if seed not in kept]
        if not fresh:
            raise SpecError("seeds", _("Name seeds that the study does not have yet."))
        check_seeds([*kept, *fresh])
        arms = open_arms(study, look)
        if study.finished_at and not arms:
            raise SpecError("seeds", _("Every arm is decided, and further seeds would not change that."))
        # From the plans and not from runs: an arm has none during the search for its learning rate.
        plans = [arm.plan for arm in (*arms, study.reference_arm) if not arm.is_lost]
        forecast = plan_forecast(
            study.base_model,
            study.dataset_version,
            plans,
            seeds=len(fresh),
            test_rows=study.test_rows,
            with_base=False,
        )
        _reopen(study, kept, fresh, forecast)
        queue_next(study, look)
        require_budget(study.project, forecast.charge, by)


def _reopen(study: Study, kept: Sequence[int], fresh: Sequence[int], plan: PlanForecast) -> None:
    """Reopen the study for the new seeds; record when they came and whether a result was known."""
    addition = {
        "at": f"{timezone.now():%Y-%m-%dT%H:%M:%SZ}",
        "seeds": list(fresh),
        "after_result": bool(study.finished_at and study.result.comparisons),
        "ended_with": len(kept) if study.finished_at else None,
    }
    study.additions = [*study.additions, addition]
    study.forecast = plan.added_to(study.forecast, share=len(kept) / len(study.seeds))
    study.seeds = [*kept, *fresh]
    # An ended study does not queue its remaining runs.
    before = seconds_queued(study) if study.finished_at else study.forecast_seconds
    study.forecast_seconds = plan.promised + before
    study.finished_at, study.cancelled_at, study.stop_reason = None, None, ""
    changed = ["seeds", "additions", "forecast_seconds", "forecast"]
    study.save(update_fields=[*changed, "finished_at", "cancelled_at", "stop_reason"])
    RunScore.objects.filter(run__in=study.runs()).delete()
