"""How many hours of devices a project may use in a month, and how many it has used and promised.

Used is the time for which workers held its trainings and evaluations, whatever came of them, as the history
of its jobs tells. Promised is what forecasts say of the work that was let in and is not over. A budget keeps
new work out; what was let in goes on to its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models.forecast import kind_of
from dashboard.models.job import Job
from dashboard.models.job_event import JobEvent
from dashboard.models.job_state import LIVE
from dashboard.models.project import Project, ProjectQuerySet, Role
from dashboard.models.worker_node import WorkerNode

if TYPE_CHECKING:
    from dashboard.models.user import User

HOUR = 3600
# More hours than a month has on a thousand devices.
MOST_HOURS = 1_000_000
MONTHS_SHOWN = 12
MANAGERS_NAMED = 3


class OverBudget(Exception):
    """The month has no room for the work; the text says what is left and who can raise the budget."""


class ComputeBudgetQuerySet(ProjectQuerySet["ComputeBudget"]):
    """Budgets by project and time."""

    def hours_of(self, project: Project, *, before: datetime | None = None) -> float | None:
        """What the project may use in a month, or could until then; None is no limit."""
        rows = self.filter(project=project, **({"created_at__lt": before} if before else {}))
        return rows.order_by("-pk").values_list("hours", flat=True).first()

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
        validators=[MinValueValidator(0), MaxValueValidator(MOST_HOURS)],
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
        return _("no limit") if self.hours is None else in_hours(self.hours * HOUR)


@dataclass(frozen=True)
class Standing:
    """A project's present month, in seconds of devices. `limit` is None where there is none."""

    month: Month
    limit: float | None
    used: float
    promised: float

    @classmethod
    def of(cls, project: Project) -> Standing:
        """As it is now."""
        month = Month.present()
        hours = ComputeBudget.objects.hours_of(project)
        return cls(
            month=month,
            limit=None if hours is None else hours * HOUR,
            used=sum(hold.within(month) for hold in holds(project, month.begin)),
            promised=promised(project),
        )

    @property
    def left(self) -> float | None:
        """What new work may still take; None without a limit."""
        return None if self.limit is None else max(0.0, self.limit - self.used - self.promised)

    def has_room_for(self, seconds: float) -> bool:
        """Whether work of so many seconds may be started."""
        return self.limit is None or self.used + self.promised + seconds <= self.limit

    def bar(self, seconds: float = 0.0) -> dict[str, float]:
        """Where used, promised and this work end on a bar of 100."""
        whole = self.limit or self.used + self.promised + seconds or 1.0
        used, promised = self.used, self.used + self.promised
        ends = {"used": used, "promised": promised, "work": promised + seconds}
        return {name: min(100.0, 100 * end / whole) for name, end in ends.items()}


class Month(NamedTuple):
    """A month of the installation's calendar: its first moment and that of the next one."""

    begin: datetime
    end: datetime

    @classmethod
    def present(cls) -> Month:
        """The one that we are in."""
        begin = timezone.localtime().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return cls(begin, _first_of_next(begin))

    @property
    def before(self) -> Month:
        """The month before."""
        end = self.begin
        last_day = end - timedelta(days=1)
        return Month(last_day.replace(day=1), end)

    @property
    def name(self) -> str:
        """November 2026."""
        return date_format(self.begin, "F Y")


def _first_of_next(begin: datetime) -> datetime:
    return (begin + timedelta(days=32)).replace(day=1)


class Hold(NamedTuple):
    """For how long one attempt occupied a device, and whose work it was."""

    person: int | None
    begin: datetime
    end: datetime

    def within(self, month: Month) -> float:
        """Its seconds in that month."""
        begin, end = max(self.begin, month.begin), min(self.end, month.end)
        # Not their difference, which would be one of clocks on the wall where both have one zone.
        return max(0.0, end.timestamp() - begin.timestamp())


def holds(project: Project, since: datetime) -> Iterator[Hold]:
    """Attempts at trainings and evaluations of the project that ended after `since`, or go on."""
    ended_since = models.Q(job__finished_at=None) | models.Q(job__finished_at__gte=since)
    leaves = models.Q(from_state__in=LIVE) & ~models.Q(to_state__in=LIVE)
    events = JobEvent.objects.filter(
        ended_since, models.Q(event="claim") | leaves, job__project=project, job__queue=Job.Queue.GPU
    ).order_by("job_id", "seq")
    began: dict[int, tuple[int | None, datetime]] = {}
    for job, person, event, at in events.values_list("job_id", "job__created_by", "event", "created_at"):
        if event == "claim":
            began[job] = (person, at)
        elif job in began:
            yield Hold(*began.pop(job), at)
    now = timezone.now()
    yield from (Hold(*held, now) for held in began.values())


def promised(project: Project) -> float:
    """Seconds that forecasts give to what waits or works, and to what open studies have yet to queue."""
    runs = project.training_runs.active().defer("spec")
    studies = project.studies.filter(finished_at=None, cancelled_at=None)
    return sum(
        run.seconds_left for run in runs.select_related("dataset_version").prefetch_related("metric_series")
    ) + sum(study.seconds_to_come for study in studies)


def require_room(project: Project, seconds: float, by: User | None) -> None:
    """Refuse work of so many seconds that has just been written, where the month has no room for it.

    Call it last in the transaction that writes the work: whoever comes second waits here for the first and
    then counts its work as well. Raises OverBudget, which must end the transaction.
    """
    if ComputeBudget.objects.hours_of(project) is None:
        return
    Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    standing = Standing.of(project)
    if not standing.has_room_for(0):
        raise OverBudget(_refusal(project, standing, seconds, by))


def _refusal(project: Project, standing: Standing, seconds: float, by: User | None) -> str:
    others = max(0.0, standing.promised - seconds)
    left = max(0.0, (standing.limit or 0.0) - standing.used - others)
    return _(
        "This needs about %(needs)s, and %(left)s are left. %(project)s may use %(limit)s in %(month)s: "
        "%(used)s are used, %(promised)s promised to work that waits or runs. %(who)s"
    ) % {
        "needs": in_hours(seconds),
        "left": in_hours(left),
        "project": project,
        "limit": in_hours(standing.limit or 0.0),
        "month": standing.month.name,
        "used": in_hours(standing.used),
        "promised": in_hours(others),
        "who": who_can_raise(project, by),
    }


def who_can_raise(project: Project, by: User | None) -> str:
    """Whom to ask for more hours; a manager is told where."""
    managers = project.memberships.filter(role=Role.MANAGER).select_related("user").order_by("pk")
    people = [member.user for member in managers]
    if by in people:
        return _("You can raise the budget under Settings, Compute budget.")
    names = [str(person) for person in people[:MANAGERS_NAMED]]
    if not names:
        return _("A manager of this project can raise the budget.")
    return _("%(names)s can raise the budget.") % {"names": _(" or ").join(names)}


def months_of(project: Project) -> list[tuple[Month, float, float | None]]:
    """The last months, newest first: the month, what was used, and the limit in force at its end."""
    months = [Month.present()]
    while len(months) < MONTHS_SHOWN:
        months.append(months[-1].before)
    taken = list(holds(project, months[-1].begin))
    found = []
    for month in months:
        used = sum(hold.within(month) for hold in taken)
        hours = ComputeBudget.objects.hours_of(project, before=month.end)
        found.append((month, used, None if hours is None else hours * HOUR))
    return found


def by_person(taken: Iterable[Hold], month: Month) -> list[tuple[int | None, float]]:
    """(person, seconds) of the month, most first."""
    sums: dict[int | None, float] = {}
    for hold in taken:
        sums[hold.person] = sums.get(hold.person, 0.0) + hold.within(month)
    return sorted(((who, seconds) for who, seconds in sums.items() if seconds), key=lambda one: -one[1])


def in_hours(seconds: float) -> str:
    """0.42 h, 3.1 h, 20 h."""
    hours = seconds / HOUR
    if 0 < hours < 0.005:
        return _("less than 0.01 h")
    digits = 2 if hours < 1 else 1
    value = round(hours, digits)
    whole = value == int(value)
    return _("%(count)s h") % {"count": number_format(value, 0 if whole else digits, force_grouping=True)}


def unit_words() -> str:
    """What an hour of a device is called here: devices that train are graphics cards, or not all of them."""
    devices = WorkerNode.objects.alive().filter(kind=WorkerNode.Kind.WORKER, queue=Job.Queue.GPU)
    kinds = {kind_of(name) for name in devices.exclude(device="").values_list("device", flat=True)}
    return _("GPU-hours") if kinds == {"cuda"} else _("Compute hours")
