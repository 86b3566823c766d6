"""Queue forecasts: the position of each waiting job, and when it will probably start."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from statistics import median
from typing import Any, NamedTuple

from django.db import models
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.translation import gettext as _

from dashboard.models.accounts.project import Project
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_event import JobEvent
from dashboard.models.jobs.job_state import State
from dashboard.models.jobs.queue_order import WaitingJob, whole_claim_order
from dashboard.models.jobs.worker_node import WorkerNode

# Finished jobs of a kind from which its usual duration is taken.
SAMPLE_SIZE = 20
# A stopping job finishes its step and saves its result.
STOP_SECONDS = 20.0
# A job that runs longer than expected is taken to have at least this share of its time before it.
MIN_REMAINING_SHARE = 0.1
# The id of a job that does not exist yet.
NEXT_JOB = 2**62


class StartEstimate(NamedTuple):
    """The expected wait of a job, in seconds from now."""

    seconds: float

    @property
    def at(self) -> datetime:
        """Return the expected time of the start, to the second."""
        return timezone.now().replace(microsecond=0) + timedelta(seconds=round(self.seconds))

    @property
    def text(self) -> str:
        """Return the wait as text, for example "in about 20 min"."""
        if self.seconds < 60:
            return _("in a moment")
        return _("in about %(time)s") % {"time": format_roughly(self.seconds)}


def format_roughly(seconds: float) -> str:
    """Format a duration with the precision of an estimate, as one number and a unit."""
    minutes = seconds / 60
    if minutes < 20:
        return _("%(count)d min") % {"count": round(minutes)}
    if minutes < 90:
        return _("%(count)d min") % {"count": 5 * round(minutes / 5)}
    if minutes < 48 * 60:
        hours = round(minutes / 30) / 2 if minutes < 600 else round(minutes / 60)
        return _("%(count)s h") % {"count": number_format(hours, 0 if hours == int(hours) else 1)}
    return _("%(count)d days") % {"count": round(minutes / 1440)}


@dataclass(frozen=True)
class QueueForecast:
    """The waiting jobs of each queue in the order of claims, with estimated starts where possible."""

    order: dict[str, tuple[int, ...]]
    starts: dict[int, StartEstimate]

    @property
    def positions(self) -> dict[int, int]:
        """Return the position of each job in its queue; 1 is claimed next."""
        return {pk: position for order in self.order.values() for position, pk in enumerate(order, start=1)}

    @classmethod
    def for_job(cls, job: Job | None) -> QueueForecast:
        """Read the queue in which the job waits; empty for a job that does not wait."""
        waits = job is not None and job.state == State.QUEUED
        return cls.read([job.queue] if job is not None and waits else [])

    def estimate_for(self, job: Job | None) -> tuple[int | None, StartEstimate | None]:
        """Return a job's position and estimated start; None for what is unknown."""
        return (self.positions.get(job.pk), self.starts.get(job.pk)) if job else (None, None)

    @classmethod
    def read(
        cls, queues: Iterable[str] = Job.Queue.values, *, also: WaitingJob | None = None
    ) -> QueueForecast:
        """Read the present state in a fixed number of queries for all queues. `also` is added to each."""
        queues = sorted(queues)
        if not queues:
            return cls({}, {})
        waiting, kinds, seconds = waiting_jobs(tuple(queues), newest_change(queues))
        if also:
            waiting = {queue: (*jobs, also) for queue, jobs in waiting.items()}
        if not any(waiting.values()):
            return cls(dict.fromkeys(queues, ()), {})
        forecasts = Counter(seconds)
        live = live_jobs(queues, forecasts)
        last_starts = Job.objects.last_starts(queues)
        order = {
            queue: whole_claim_order(
                waiting[queue],
                tuple(job.project_id for job in live if job.queue == queue),
                tuple(last_starts[queue].items()),
            )
            for queue in queues
        }
        return cls(order, estimate_starts(order, live, kinds, forecasts))


def newest_change(queues: list[str]) -> tuple[Any, ...]:
    """Return what differs whenever other jobs wait in these queues, or in another order."""
    event = JobEvent.objects.order_by("-pk").values_list("pk", "created_at").first()
    facts = Job.objects.waiting(*queues).aggregate(
        models.Count("pk"), models.Max("pk"), models.Sum("priority")
    )
    return event, *facts.values()


@lru_cache(maxsize=8)
def waiting_jobs(
    queues: tuple[str, ...], _newest_change: tuple[Any, ...]
) -> tuple[dict[str, tuple[WaitingJob, ...]], dict[int, str], dict[int, int]]:
    """Return the waiting jobs by queue, their kinds, and the seconds that their runs are expected to take.

    Each change of a job writes an event, so a thousand jobs are read once per change and not per request.
    """
    waiting: dict[str, dict[int, WaitingJob]] = {queue: {} for queue in queues}
    kinds: dict[int, str] = {}
    forecasts: Counter[int] = Counter()
    rows = Job.objects.waiting(*queues).values_list(
        "queue", "pk", "priority", "project", "kind", "training_runs__forecast_seconds"
    )
    # One query for order and durations.
    for queue, pk, priority, project, kind, seconds in rows:
        waiting[queue][pk] = WaitingJob(pk, priority, project, kind)
        kinds[pk] = kind
        forecasts[pk] += seconds or 0
    return {queue: tuple(jobs.values()) for queue, jobs in waiting.items()}, kinds, dict(forecasts)


def estimate_next_start(queue: str, project: Project | None) -> StartEstimate | None:
    """Estimate when a training would start that is submitted to this project now."""
    job = WaitingJob(NEXT_JOB, Job.Priority.NORMAL, project.pk if project else None, Job.Kind.TRAIN)
    return QueueForecast.read([queue], also=job).starts.get(NEXT_JOB)


def live_jobs(queues: list[str], forecasts: Counter[int]) -> list[Job]:
    """Return what workers hold in these queues; add the seconds that their runs are expected to take."""
    facts = ("queue", "project", "kind", "state", "worker", "keep", "eta_seconds", "started_at")
    rows = Job.objects.live().filter(queue__in=queues).only(*facts).order_by()
    jobs = {}
    # A row per run: grouped by job, databases would read all jobs.
    for job in rows.annotate(run_seconds=models.F("training_runs__forecast_seconds")):
        forecasts[job.pk] += job.run_seconds or 0  # type: ignore[attr-defined]
        jobs[job.pk] = job
    return list(jobs.values())


def estimate_starts(
    order: dict[str, tuple[int, ...]], live: list[Job], kinds: dict[int, str], forecasts: Counter[int]
) -> dict[int, StartEstimate]:
    """Divide the remaining time of everything ahead of each job by the workers of its queue.

    `kinds`: of the waiting jobs. `forecasts`: the seconds that the runs of each job are expected to take.
    """
    slots = WorkerNode.objects.slots_by_queue([queue for queue, jobs in order.items() if jobs])
    if not slots:
        return {}
    live = [job for job in live if job.worker in slots.get(job.queue, ())]
    kinds = kinds | {job.pk: job.kind for job in live}
    usual = {kind: usual_seconds(kind) for kind in {kind for pk, kind in kinds.items() if not forecasts[pk]}}
    expected = {pk: forecasts[pk] or usual[kind] for pk, kind in kinds.items()}
    starts = {}
    for queue, workers in slots.items():
        running = [job for job in live if job.queue == queue]
        count = sum(workers.values())
        ahead = sum(remaining_seconds(job, expected[job.pk]) for job in running)
        for place, pk in enumerate(order[queue]):
            # An idle worker takes the job at once, however long the others still work.
            seconds = 0.0 if place + len(running) < count else ahead / count
            if math.isfinite(seconds):
                starts[pk] = StartEstimate(seconds)
            ahead += expected.get(pk, math.inf)
    return starts


def usual_seconds(kind: str) -> float:
    """Return the median duration of the last jobs of a kind that succeeded in one attempt; else infinity."""
    ended = Job.objects.filter(kind=kind, state=State.SUCCEEDED, attempt=1).order_by("-finished_at")
    spans = ended.values_list("started_at", "finished_at")[:SAMPLE_SIZE]
    durations = [(end - start).total_seconds() for start, end in spans if start and end]
    return median(durations) if durations else math.inf


def remaining_seconds(job: Job, expected: float) -> float:
    """Return how long a running job still takes: its own estimate, else what is left of the expected time."""
    if job.is_stop_requested:
        return STOP_SECONDS
    if job.eta_seconds is not None:
        return job.eta_seconds
    elapsed = (timezone.now() - job.started_at).total_seconds() if job.started_at else 0.0
    return max(expected - elapsed, expected * MIN_REMAINING_SHARE)
