"""The project's compute budget: how the month stands, and setting the limit."""

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
    """Hours that the project may use in each month from now on; null is no limit."""

    model_config = ConfigDict(extra="forbid")

    hours_per_month: Annotated[StrictFloat, Field(ge=0, le=MAX_HOURS_PER_MONTH)] | None


class ComputeBudgetOut(Schema):
    """How the present month stands, in hours of one device.

    `promised_hours`: what forecasts give to work that waits or runs. `left_hours`: what new work may take;
    null without a limit.
    """

    month: str
    hours_per_month: float | None
    used_hours: float
    promised_hours: float
    left_hours: float | None


def shown(project: Project) -> dict[str, object]:
    """The object as every answer has it."""
    status = BudgetStatus.for_project(project)
    return {
        "month": status.month.begin.strftime("%Y-%m"),
        "hours_per_month": None if status.limit is None else status.limit / HOUR,
        "used_hours": status.used / HOUR,
        "promised_hours": status.promised / HOUR,
        "left_hours": None if status.left is None else status.left / HOUR,
    }


@router.get("", response={200: ComputeBudgetOut, **READING})
def detail(request: Call) -> dict[str, object]:
    """What the project may still start this month. Beyond it a start is refused with 409, `over_budget`."""
    return shown(request.auth.project)


@router.patch(
    "",
    auth=Token(Role.MANAGER),
    response={200: ComputeBudgetOut, **WRITING},
    url_name="compute-budget-detail",
)
def change(request: Call, payload: ComputeBudgetIn) -> dict[str, object]:
    """Set the limit. What was let in goes on, also beyond a lower one."""
    ComputeBudget.objects.change(request.auth.project, payload.hours_per_month, request.auth.user)
    return shown(request.auth.project)
