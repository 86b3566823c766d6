"""Device time of a project: used in a month, and reserved for work that is not over.

Used: the time for which workers held its trainings and evaluations, successful or not, from the history of
its jobs. Reserved: the forecasts of waiting and running work. Knows nothing of limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from django.db.models import Prefetch, Q, QuerySet, prefetch_related_objects
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _

from dashboard.models.accounts.project import Project
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_event import JobEvent
from dashboard.models.jobs.job_state import LIVE
from dashboard.models.jobs.worker_node import WorkerNode
from workers.forecasting.training_cost import device_kind

HOUR = 3600


class Month(NamedTuple):
    """A calendar month in the installation's time zone, from `begin` up to `end`."""

    begin: datetime
    end: datetime

    @classmethod
    def current(cls) -> Month:
        begin = timezone.localtime().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return cls(begin, (begin + timedelta(days=32)).replace(day=1))

    @property
    def previous(self) -> Month:
        return Month((self.begin - timedelta(days=1)).replace(day=1), self.begin)

    @property
    def name(self) -> str:
        """Return month and year, for example "November 2026"."""
        return date_format(self.begin, "F Y")


class DeviceUsage(NamedTuple):
    """The time for which one attempt held a device, and the id of the job's user."""

    user: int | None
    begin: datetime
    end: datetime

    def within(self, begin: datetime, end: datetime) -> float:
        """Return the seconds that fall between two times."""
        begin, end = max(self.begin, begin), min(self.end, end)
        # Timestamps, because datetimes of one zone subtract as wall clocks, wrong across a clock change.
        return max(0.0, end.timestamp() - begin.timestamp())


def device_usage(project: Project, since: datetime) -> Iterator[DeviceUsage]:
    """Yield the attempts of the project's trainings and evaluations that run or ended after `since`."""
    # Many jobs may wait that no worker has held yet.
    jobs = Job.objects.filter(project=project, queue=Job.Queue.GPU, attempt__gt=0).order_by()
    ended = jobs.filter(finished_at__gte=since).values_list("pk", "attempt", "finished_at")
    if keys := tuple(sorted(ended)):
        yield from ended_usage(project.pk, since, keys)
    yield from _device_usage(JobEvent.objects.filter(job__in=jobs.filter(finished_at=None).values("pk")))


# Histories are append-only: what ended jobs used changes only with another end.
@lru_cache(maxsize=8)
def ended_usage(
    project: int, since: datetime, _ended: tuple[tuple[int, int, datetime | None], ...]
) -> tuple[DeviceUsage, ...]:
    """Return the attempts of the jobs that ended after `since`."""
    jobs = Job.objects.filter(project=project, queue=Job.Queue.GPU, attempt__gt=0, finished_at__gte=since)
    return tuple(_device_usage(JobEvent.objects.filter(job__in=jobs.order_by().values("pk"))))


def used_seconds(jobs: QuerySet[Job]) -> float:
    """Return the device seconds of these jobs, over all attempts."""
    usages = _device_usage(JobEvent.objects.filter(job__in=jobs.values("pk")))
    return sum((usage.end - usage.begin).total_seconds() for usage in usages)


def _device_usage(events: QuerySet[JobEvent]) -> Iterator[DeviceUsage]:
    releases = Q(from_state__in=LIVE) & ~Q(to_state__in=LIVE)
    events = events.filter(Q(event="claim") | releases).order_by("job_id", "seq")
    claims: dict[int, tuple[int | None, datetime]] = {}
    for job, user, event, at in events.values_list("job_id", "job__created_by", "event", "created_at"):
        if event == "claim":
            claims[job] = (user, at)
        elif job in claims:
            yield DeviceUsage(*claims.pop(job), at)
    now = timezone.now()
    yield from (DeviceUsage(*claim, now) for claim in claims.values())


def reserved_seconds(project: Project) -> float:
    """Return the forecast seconds of waiting and running work, and of runs that open studies will queue."""
    runs = project.training_runs.order_by()
    facts = list(runs.active().values_list("pk", "job__attempt", "forecast_seconds"))
    # Many may wait; before the first attempt the forecast alone is enough.
    waiting = sum(seconds or 0.0 for _pk, attempt, seconds in facts if not attempt)
    begun = runs.filter(pk__in=[pk for pk, attempt, _seconds in facts if attempt])
    begun = begun.select_related("dataset_version").only(
        "project", "spec", "forecast", "dataset_version__splits"
    )
    studies = list(project.studies.filter(finished_at=None, cancelled_at=None))
    if studies:
        planned = project.training_runs.only("project", "study_arm", "rung", "forecast")
        scores = project.evaluations.select_related("job").only("project", "run", "subject", "job__state")
        prefetch_related_objects(
            studies, Prefetch("arms__runs", planned), Prefetch("arms__runs__evaluations", scores)
        )
    return (
        waiting
        + sum(run.seconds_left for run in begun.prefetch_related("metric_series"))
        + sum(study.remaining_seconds for study in studies)
    )


def format_hours(seconds: float) -> str:
    """Format device hours with the precision of an estimate: 0.42 h, 3.1 h, 20 h."""
    hours = seconds / HOUR
    if 0 < hours < 0.005:
        return _("less than 0.01 h")
    digits = 2 if hours < 1 else 1
    value = round(hours, digits)
    count = number_format(value, 0 if value == int(value) else digits, force_grouping=True)
    return _("%(count)s h") % {"count": count}


def unit_label() -> str:
    """Return the name of a device hour: GPU-hours if every training device is a GPU."""
    devices = WorkerNode.objects.alive().filter(kind=WorkerNode.Kind.WORKER, queue=Job.Queue.GPU)
    kinds = {device_kind(name) for name in devices.exclude(device="").values_list("device", flat=True)}
    return _("GPU-hours") if kinds == {"cuda"} else _("Compute hours")
