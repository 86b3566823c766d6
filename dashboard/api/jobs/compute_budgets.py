"""The project's compute budget: its usage this month, and its limit."""

from __future__ import annotations

from typing import Annotated

from ninja import Router, Schema
from pydantic import ConfigDict, Field, StrictFloat

from dashboard.api.access import Call, Token
from dashboard.api.refusals import READING, WRITING
from dashboard.models import ComputeBudget, Project, Role
from dashboard.models.jobs.compute_budget import MAX_HOURS_PER_MONTH, BudgetStatus
from dashboard.models.jobs.compute_use import HOUR

router = Router()


class ComputeBudgetIn(Schema):
    """Hours that the project may use per month; null for no limit."""

    model_config = ConfigDict(extra="forbid")

    hours_per_month: Annotated[StrictFloat, Field(ge=0, le=MAX_HOURS_PER_MONTH)] | None


class ComputeBudgetOut(Schema):
    """The current month in device hours.

    `promised_hours`: the forecast of waiting and running work. `left_hours`: what new work may take; null
    without a limit.
    """

    month: str
    hours_per_month: float | None
    used_hours: float
    promised_hours: float
    left_hours: float | None


def serialize_budget(project: Project) -> dict[str, object]:
    status = BudgetStatus.for_project(project)
    return {
        "month": status.month.begin.strftime("%Y-%m"),
        "hours_per_month": None if status.limit is None else status.limit / HOUR,
        "used_hours": status.used / HOUR,
        "promised_hours": status.reserved / HOUR,
        "left_hours": None if status.left is None else status.left / HOUR,
    }


@router.get("", response={200: ComputeBudgetOut, **READING})
def detail(request: Call) -> dict[str, object]:
    """Return usage and limit. Work beyond the limit is refused with 409 `over_budget`."""
    return serialize_budget(request.auth.project)


@router.patch(
    "",
    auth=Token(Role.MANAGER),
    response={200: ComputeBudgetOut, **WRITING},
    url_name="compute-budget-detail",
)
def change(request: Call, payload: ComputeBudgetIn) -> dict[str, object]:
    """Set the limit. Accepted work continues, also beyond a lower limit."""
    ComputeBudget.objects.change(request.auth.project, payload.hours_per_month, request.auth.user)
    return serialize_budget(request.auth.project)
