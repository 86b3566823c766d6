"""How long devices work for a project: used in a month, and promised to what was let in.

Used is the time for which workers held its trainings and evaluations, whatever came of them, as the history
of its jobs tells. Promised is what forecasts say of the work that is not over. Knows nothing of limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db.models import Prefetch, Q, QuerySet
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _

from dashboard.models.accounts.project import Project
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_event import JobEvent
from dashboard.models.jobs.job_state import LIVE
from dashboard.models.jobs.worker_node import WorkerNode
from workers.forecasting.training_cost import device_kind, expected_seconds

HOUR = 3600


class Month(NamedTuple):
    """A month of the installation's calendar: its first moment and that of the next one."""

    begin: datetime
    end: datetime

    @classmethod
    def present(cls) -> Month:
        """The one that we are in."""
        begin = timezone.localtime().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return cls(begin, (begin + timedelta(days=32)).replace(day=1))

    @property
    def before(self) -> Month:
        """The month before."""
        return Month((self.begin - timedelta(days=1)).replace(day=1), self.begin)

    @property
    def name(self) -> str:
        """November 2026."""
        return date_format(self.begin, "F Y")


class DeviceUsage(NamedTuple):
    """For how long one attempt occupied a device, and whose work it was."""

    person: int | None
    begin: datetime
    end: datetime

    def within(self, month: Month) -> float:
        """Its seconds in that month."""
        begin, end = max(self.begin, month.begin), min(self.end, month.end)
        # Not their difference, which would be one of clocks on the wall where both have one zone.
        return max(0.0, end.timestamp() - begin.timestamp())


def device_usage(project: Project, since: datetime) -> Iterator[DeviceUsage]:
    """Attempts at trainings and evaluations of the project, of jobs that ended after `since` or go on."""
    ended_since = Q(job__finished_at=None) | Q(job__finished_at__gte=since)
    return _device_usage(JobEvent.objects.filter(ended_since, job__project=project, job__queue=Job.Queue.GPU))


def used_seconds(jobs: QuerySet[Job]) -> float:
    """For how long devices were occupied by these jobs, all their attempts together."""
    taken = _device_usage(JobEvent.objects.filter(job__in=jobs.values("pk")))
    return sum((hold.end - hold.begin).total_seconds() for hold in taken)


def _device_usage(found: QuerySet[JobEvent]) -> Iterator[DeviceUsage]:
    leaves = Q(from_state__in=LIVE) & ~Q(to_state__in=LIVE)
    events = found.filter(Q(event="claim") | leaves).order_by("job_id", "seq")
    began: dict[int, tuple[int | None, datetime]] = {}
    for job, person, event, at in events.values_list("job_id", "job__created_by", "event", "created_at"):
        if event == "claim":
            began[job] = (person, at)
        elif job in began:
            yield DeviceUsage(*began.pop(job), at)
    now = timezone.now()
    yield from (DeviceUsage(*held, now) for held in began.values())


def promised(project: Project) -> float:
    """Seconds that forecasts give to what waits or works, and to what open studies have yet to queue."""
    runs = project.training_runs.active()
    # Many may wait, and of those that nobody has taken yet the forecast says all.
    waiting = runs.filter(job__attempt=0).values_list("forecast", flat=True)
    begun = runs.filter(job__attempt__gt=0).select_related("dataset_version")
    known = Prefetch("arms__runs", project.training_runs.only("project", "study_arm", "rung", "forecast"))
    scores = project.evaluations.select_related("job").only("project", "run", "subject", "job__state")
    studies = project.studies.filter(finished_at=None, cancelled_at=None).prefetch_related(
        known, Prefetch("arms__runs__evaluations", scores)
    )
    return (
        sum(expected_seconds(forecast) for forecast in waiting)
        + sum(run.seconds_left for run in begun.prefetch_related("metric_series"))
        + sum(study.seconds_to_come for study in studies)
    )


def by_person(taken: Iterable[DeviceUsage], month: Month) -> list[tuple[int | None, float]]:
    """(person, seconds) of the month, most first."""
    sums: dict[int | None, float] = {}
    for hold in taken:
        sums[hold.person] = sums.get(hold.person, 0.0) + hold.within(month)
    return sorted(((who, seconds) for who, seconds in sums.items() if seconds), key=lambda one: -one[1])


def format_hours(seconds: float) -> str:
    """0.42 h, 3.1 h, 20 h."""
    hours = seconds / HOUR
    if 0 < hours < 0.005:
        return _("less than 0.01 h")
    digits = 2 if hours < 1 else 1
    value = round(hours, digits)
    shown = number_format(value, 0 if value == int(value) else digits, force_grouping=True)
    return _("%(count)s h") % {"count": shown}


def unit_label() -> str:
    """What an hour of a device is called here: devices that train are graphics cards, or not all of them."""
    devices = WorkerNode.objects.alive().filter(kind=WorkerNode.Kind.WORKER, queue=Job.Queue.GPU)
    kinds = {device_kind(name) for name in devices.exclude(device="").values_list("device", flat=True)}
    return _("GPU-hours") if kinds == {"cuda"} else _("Compute hours")
