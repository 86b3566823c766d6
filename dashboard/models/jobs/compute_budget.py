"""A project's compute budget: the device hours that it may use per month.

`require_budget` refuses new work beyond it, in the transaction that queues the work. Accepted work runs to
its end, with its evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models.accounts.project import Project, ProjectQuerySet, Role
from dashboard.models.jobs.compute_use import (
    HOUR,
    Month,
    format_hours,
    reserved_seconds,
    unit_label,
)
from dashboard.models.jobs.device_day import DeviceDay

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

# More than a thousand devices deliver in a month.
MAX_HOURS_PER_MONTH = 1_000_000
MONTHS_SHOWN = 12
MANAGERS_NAMED = 3
# Share of the limit from which pages show a warning.
NEARLY_USED = 0.8


class OverBudget(Exception):
    """The work exceeds what is left of the month; the text states that and who can raise the budget."""


class ComputeBudgetQuerySet(ProjectQuerySet["ComputeBudget"]):
    """Budgets by project."""

    def hours_of(self, project: Project) -> float | None:
        """Return the hours per month of a project; None for no limit."""
        return self.filter(project=project).order_by("-pk").values_list("hours", flat=True).first()

    def change(self, project: Project, hours: float | None, by: User | None) -> bool:
        """Set the hours per month; None for no limit. Return False if nothing changes."""
        if self.hours_of(project) == hours:
            return False
        self.create(project=project, hours=hours, set_by=by)
        return True


class ComputeBudget(models.Model):
    """A limit that a manager has set. The newest row is in force; earlier rows are its history."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="compute_budgets")
    hours = models.FloatField(
        gettext_lazy("hours per month"),
        null=True,
        blank=True,
        validators=[MinValueValidator(0), MaxValueValidator(MAX_HOURS_PER_MONTH)],
    )
    set_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ComputeBudgetQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(hours=None) | models.Q(hours__gte=0), name="compute_budget_not_negative"
            )
        ]

    def __str__(self) -> str:
        return _("No limit") if self.hours is None else format_hours(self.hours * HOUR)


@dataclass(frozen=True)
class BudgetStatus:
    """The current month of a project, in device seconds. `limit` is None without a limit."""

    month: Month
    limit: float | None
    used: float
    reserved: float

    @classmethod
    def for_project(cls, project: Project, days: Sequence[DeviceDay] | None = None) -> BudgetStatus:
        """Return the status; `days`: those of the current month and before, if they were read."""
        month = Month.current()
        hours = ComputeBudget.objects.hours_of(project)
        if days is None:
            days = DeviceDay.objects.since(project, month.begin)
        return cls(
            month=month,
            limit=None if hours is None else hours * HOUR,
            used=sum(day.seconds for day in days if day.begin >= month.begin),
            reserved=reserved_seconds(project),
        )

    @property
    def left(self) -> float | None:
        """Return the seconds that new work may take; None without a limit."""
        return None if self.limit is None else max(0.0, self.limit - self.used - self.reserved)

    @property
    def share(self) -> float:
        """Return the used and reserved share of the limit; 0 without a limit."""
        if self.limit is None:
            return 0.0
        return (self.used + self.reserved) / self.limit if self.limit else 1.0

    @property
    def is_nearly_used(self) -> bool:
        return self.share >= NEARLY_USED

    def covers(self, seconds: float) -> bool:
        """Return whether work of this duration may start."""
        return self.limit is None or self.used + self.reserved + seconds <= self.limit


@dataclass(frozen=True)
class Charge:
    """Planned work against the budget. `raise_hint` says who can raise the budget if it is exceeded."""

    status: BudgetStatus
    seconds: float
    unit: str
    raise_hint: str

    @classmethod
    def for_work(
        cls, project: Project, seconds: float, by: User | None, status: BudgetStatus | None = None
    ) -> Charge:
        status = status or BudgetStatus.for_project(project)
        hint = "" if status.covers(seconds) else budget_raise_hint(project, by)
        return cls(status, seconds, unit_label(), hint)

    @property
    def is_covered(self) -> bool:
        return self.status.covers(self.seconds)

    @property
    def bar(self) -> dict[str, float]:
        """Return the ends of the used, reserved and planned parts of a bar, in percent of the limit."""
        used = self.status.used
        reserved = used + self.status.reserved
        ends = {"used": used, "reserved": reserved, "work": reserved + self.seconds}
        whole = self.status.limit or ends["work"] or 1.0
        return {name: min(100.0, 100 * end / whole) for name, end in ends.items()}


def require_budget(project: Project, seconds: float, by: User | None, *, is_queued: bool = True) -> None:
    """Raise OverBudget if the month cannot cover work of this duration; the transaction must then end.

    Call it last in the transaction that queues the work: concurrent callers wait here for the project's lock,
    so that each counts the work of the others. `is_queued=False`: the work is not written yet.
    """
    if ComputeBudget.objects.hours_of(project) is None:
        return
    project.hold()
    status = BudgetStatus.for_project(project)
    own = seconds if is_queued else 0.0
    if not status.covers(seconds - own):
        others = max(0.0, status.reserved - own)
        raise OverBudget(_refusal(project, status, seconds, others, by))


def _refusal(project: Project, status: BudgetStatus, seconds: float, others: float, by: User | None) -> str:
    limit = status.limit or 0.0
    return _(
        "This needs about %(needs)s, and %(left)s are left. %(project)s may use %(limit)s in %(month)s: "
        "%(used)s are used, and %(reserved)s are reserved for waiting and running jobs. %(hint)s"
    ) % {
        "needs": format_hours(seconds),
        "left": format_hours(max(0.0, limit - status.used - others)),
        "project": project,
        "limit": format_hours(limit),
        "month": status.month.name,
        "used": format_hours(status.used),
        "reserved": format_hours(others),
        "hint": budget_raise_hint(project, by),
    }


def budget_raise_hint(project: Project, by: User | None) -> str:
    """Return a sentence that says who can raise the budget; for a manager, where."""
    memberships = project.memberships.filter(role=Role.MANAGER).select_related("user").order_by("pk")
    managers = [membership.user for membership in memberships]
    if by in managers:
        return _("You can raise the budget under Settings, Compute budget.")
    names = [str(manager) for manager in managers[:MANAGERS_NAMED]]
    if not names:
        return _("A manager of this project can raise the budget.")
    return _("%(names)s can raise the budget.") % {"names": _(" or ").join(names)}


def shown_months() -> list[Month]:
    """Return the last months, newest first."""
    months = [Month.current()]
    while len(months) < MONTHS_SHOWN:
        months.append(months[-1].previous)
    return months


def monthly_usage(
    project: Project, days: Sequence[DeviceDay] | None = None
) -> list[tuple[Month, float, float | None]]:
    """Return month, used seconds, and the limit in seconds at its end; `days`: theirs, if they were read."""
    months = shown_months()
    if days is None:
        days = DeviceDay.objects.since(project, months[-1].begin)
    limits = list(ComputeBudget.objects.filter(project=project).values_list("created_at", "hours"))
    rows = []
    for month in months:
        hours = next((hours for set_at, hours in limits if set_at < month.end), None)
        used = sum(day.seconds for day in days if month.begin <= day.begin < month.end)
        rows.append((month, used, None if hours is None else hours * HOUR))
    return rows
