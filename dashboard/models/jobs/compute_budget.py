"""How many hours of devices a project may use in a month.

A budget keeps new work out: `require_budget` is asked by whatever queues training for a person, in the
transaction that does so. What was let in goes on to its end, and its evaluations with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models.accounts.project import Project, ProjectQuerySet, Role
from dashboard.models.jobs.compute_use import HOUR, Month, device_usage, format_hours, promised, unit_label

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

# More than a thousand devices work in a month.
MAX_HOURS_PER_MONTH = 1_000_000
MONTHS_SHOWN = 12
MANAGERS_NAMED = 3
# From this part of the limit on, people should know before they plan.
NEARLY_USED = 0.8


class OverBudget(Exception):
    """The month has no room for the work; the text says what is left and who can raise the budget."""


class ComputeBudgetQuerySet(ProjectQuerySet["ComputeBudget"]):
    """Budgets by project."""

    def hours_of(self, project: Project) -> float | None:
        """What the project may use in a month; None is no limit."""
        return self.filter(project=project).order_by("-pk").values_list("hours", flat=True).first()

    def change(self, project: Project, hours: float | None, by: User | None) -> bool:
        """From now on so many hours a month; None for no limit. False where nothing changes."""
        if self.hours_of(project) == hours:
            return False
        self.create(project=project, hours=hours, set_by=by)
        return True


class ComputeBudget(models.Model):
    """What a manager has set. The newest row counts; the earlier ones say what counted before."""

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
    """A project's present month, in seconds of devices. `limit` is None where there is none."""

    month: Month
    limit: float | None
    used: float
    promised: float

    @classmethod
    def for_project(cls, project: Project) -> BudgetStatus:
        """As it is now."""
        month = Month.present()
        hours = ComputeBudget.objects.hours_of(project)
        return cls(
            month=month,
            limit=None if hours is None else hours * HOUR,
            used=sum(hold.within(month) for hold in device_usage(project, month.begin)),
            promised=promised(project),
        )

    @property
    def left(self) -> float | None:
        """What new work may still take; None without a limit."""
        return None if self.limit is None else max(0.0, self.limit - self.used - self.promised)

    @property
    def share(self) -> float:
        """Which part of the limit is used or promised; 0 without one."""
        if self.limit is None:
            return 0.0
        return (self.used + self.promised) / self.limit if self.limit else 1.0

    @property
    def is_nearly_used(self) -> bool:
        """Whether little or nothing is left."""
        return self.share >= NEARLY_USED

    def covers(self, seconds: float) -> bool:
        """Whether work of so many seconds may be started."""
        return self.limit is None or self.used + self.promised + seconds <= self.limit


@dataclass(frozen=True)
class Charge:
    """What work that is planned would take of the month. `who` can make room where there is none."""

    status: BudgetStatus
    seconds: float
    unit: str
    who: str

    @classmethod
    def of(cls, project: Project, seconds: float, by: User | None) -> Charge:
        """As it is now."""
        status = BudgetStatus.for_project(project)
        who = "" if status.covers(seconds) else budget_raise_hint(project, by)
        return cls(status, seconds, unit_label(), who)

    @property
    def is_covered(self) -> bool:
        """Whether it may be started."""
        return self.status.covers(self.seconds)

    @property
    def bar(self) -> dict[str, float]:
        """Where used, promised and this work end on a bar of 100 that stands for the limit."""
        used = self.status.used
        ends = {"used": used, "promised": used + self.status.promised}
        ends["work"] = ends["promised"] + self.seconds
        whole = self.status.limit or ends["work"] or 1.0
        return {name: min(100.0, 100 * end / whole) for name, end in ends.items()}


def require_budget(project: Project, seconds: float, by: User | None) -> None:
    """Refuse work of so many seconds that has just been written, where the month has no room for it.

    Call it last in the transaction that writes the work: whoever comes second waits here for the first and
    then counts its work as well. Raises OverBudget, which must end the transaction.
    """
    _require(project, seconds, by, promised=seconds)


def require_budget_before_writing(project: Project, seconds: float, by: User | None) -> None:
    """The same for work that is not written yet; call it in the transaction that then writes it."""
    _require(project, seconds, by, promised=0.0)


def _require(project: Project, seconds: float, by: User | None, *, promised: float) -> None:
    if ComputeBudget.objects.hours_of(project) is None:
        return
    project.hold()
    status = BudgetStatus.for_project(project)
    if not status.covers(seconds - promised):
        raise OverBudget(_refusal(project, status, seconds, by, others=status.promised - promised))


def _refusal(
    project: Project, status: BudgetStatus, seconds: float, by: User | None, *, others: float
) -> str:
    others, limit = max(0.0, others), status.limit or 0.0
    return _(
        "This needs about %(needs)s, and %(left)s are left. %(project)s may use %(limit)s in %(month)s: "
        "%(used)s are used, and %(promised)s are promised to work that waits or runs. %(who)s"
    ) % {
        "needs": format_hours(seconds),
        "left": format_hours(max(0.0, limit - status.used - others)),
        "project": project,
        "limit": format_hours(limit),
        "month": status.month.name,
        "used": format_hours(status.used),
        "promised": format_hours(others),
        "who": budget_raise_hint(project, by),
    }


def budget_raise_hint(project: Project, by: User | None) -> str:
    """Whom to ask for more hours; a manager is told where."""
    managers = project.memberships.filter(role=Role.MANAGER).select_related("user").order_by("pk")
    people = [member.user for member in managers]
    if by in people:
        return _("You can raise the budget under Settings, Compute budget.")
    names = [str(person) for person in people[:MANAGERS_NAMED]]
    if not names:
        return _("A manager of this project can raise the budget.")
    return _("%(names)s can raise the budget.") % {"names": _(" or ").join(names)}


def monthly_usage(project: Project) -> list[tuple[Month, float, float | None]]:
    """The last months, newest first: the month, what was used, and the limit in force at its end."""
    months = [Month.present()]
    while len(months) < MONTHS_SHOWN:
        months.append(months[-1].before)
    taken = list(device_usage(project, months[-1].begin))
    limits = list(ComputeBudget.objects.filter(project=project).values_list("created_at", "hours"))
    found = []
    for month in months:
        hours = next((hours for set_at, hours in limits if set_at < month.end), None)
        used = sum(hold.within(month) for hold in taken)
        found.append((month, used, None if hours is None else hours * HOUR))
    return found
