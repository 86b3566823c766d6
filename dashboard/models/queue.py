"""The queue as people see it: who comes when, about how long that takes, and moving jobs in it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.core.exceptions import PermissionDenied
from django.db import models, transaction
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.translation import gettext as _

from dashboard.models.job import Job
from dashboard.models.job_state import State
from dashboard.models.project import Caller, Project, Role
from dashboard.models.queue_order import Waiting
from dashboard.models.user import User
from dashboard.models.worker_node import WorkerNode

# How long work takes, in seconds: probably at least, expected, probably at most.
Seconds = tuple[float, float, float]
UNKNOWN: Seconds = (math.inf, math.inf, math.inf)
REMEMBERED = 20
# Of what a job at work says itself, and of a kind that has ended only a few times.
ETA_SPREAD = (0.8, 1.0, 1.25)
FEW, FEW_SPREAD = 5, (0.5, 1.0, 2.0)
# Of a job that was asked to stop: it finishes its step, and saves what is to be kept.
STOPPING: Seconds = (2.0, 20.0, 60.0)
# A job that outlasts the usual time has at least this share of it before it.
OVERTIME = 0.1
# The number of a job that is not there yet.
NEWEST = 2**62


class MoveRefused(Exception):
    """The job cannot go there; the text says why."""


@dataclass(frozen=True)
class StartEstimate:
    """In how many seconds a waiting job probably starts."""

    low: float
    expected: float
    high: float

    @property
    def at(self) -> datetime:
        """The expected moment, to the second."""
        return timezone.now().replace(microsecond=0) + timedelta(seconds=round(self.expected))

    @property
    def text(self) -> str:
        """In about 20 min."""
        if self.high < 60:
            return _("in a moment")
        return _("in about %(time)s") % {"time": about(self.expected)}

    @property
    def range_text(self) -> str:
        """Between 10 and 40 min; "" where that says no more than the words."""
        low, high = about(self.low), about(self.high)
        if self.high < 60 or low == high:
            return ""
        (first, _space, unit), (_last, _space, other) = low.partition(" "), high.partition(" ")
        return _("between %(low)s and %(high)s") % {"low": first if unit == other else low, "high": high}


def about(seconds: float) -> str:
    """A time as roughly as it is known, as a number and a unit."""
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
    """Each queue's jobs in the order of claims and, where there is something to go by, their starts."""

    lines: dict[str, list[int]]
    starts: dict[int, StartEstimate]

    @property
    def places(self) -> dict[int, int]:
        """Each job's place in its queue: 1 for the next to start."""
        return {pk: place for line in self.lines.values() for place, pk in enumerate(line, start=1)}

    @classmethod
    def for_job(cls, job: Job | None) -> QueueForecast:
        """That of the queue in which a job waits; an empty one for a job that does not."""
        waits = job is not None and job.state == State.QUEUED
        return cls.read([job.queue]) if job is not None and waits else cls({}, {})

    def estimate_for(self, job: Job | None) -> tuple[int | None, StartEstimate | None]:
        """A job's place in its queue and when it probably starts; None for what is not known."""
        return (self.places.get(job.pk), self.starts.get(job.pk)) if job else (None, None)

    @classmethod
    def read(cls, queues: Iterable[str] = Job.Queue.values, *, also: Waiting | None = None) -> QueueForecast:
        """As it stands now, in a fixed number of queries per queue. `also` waits in each as well."""
        lines: dict[str, list[int]] = {}
        starts: dict[int, StartEstimate] = {}
        for queue in queues:
            takers = WorkerNode.objects.slots_by_worker(queue)
            line = lines[queue] = list(Job.objects.claim_order(queue, takers, also))
            if line and takers:
                starts.update(expected_starts(queue, line, takers))
        return cls(lines, starts)


def estimate_next_start(queue: str, project: Project | None, by: User | None) -> StartEstimate | None:
    """When a job would start that this person submits now."""
    owner = (project.pk if project else None, by.pk if by else None)
    new = Waiting(NEWEST, Job.Priority.NORMAL, *owner, None, None)
    return QueueForecast.read([queue], also=new).starts.get(NEWEST)


def expected_starts(queue: str, line: list[int], takers: Mapping[str, int]) -> dict[int, StartEstimate]:
    """Let the jobs of `line` start one after the other as workers become free."""
    kinds: dict[int, str] = dict(Job.objects.waiting(queue).values_list("pk", "kind"))
    at_work = list(Job.objects.live().filter(queue=queue, worker__in=takers).defer("spec"))
    slots = sum(takers.values())
    # One that is not there yet has none after it, so its kind does not matter.
    usual = {kind: usual_seconds(kind) for kind in {*kinds.values(), *(job.kind for job in at_work)}}
    busy = [remaining(job, usual[job.kind]) for job in at_work]
    scenarios = []
    for which in range(3):
        free = ([seconds[which] for seconds in busy] + [0.0] * slots)[: max(slots, len(busy))]
        heapq.heapify(free)
        begins = []
        for pk in line:
            begins.append(free[0])
            heapq.heapreplace(free, free[0] + usual.get(kinds.get(pk, ""), UNKNOWN)[which])
        scenarios.append(begins)
    found = zip(line, *scenarios, strict=True)
    return {pk: StartEstimate(*moments) for pk, *moments in found if math.isfinite(moments[1])}


def usual_seconds(kind: str) -> Seconds:
    """How long the last jobs of a kind took that ended well in one attempt."""
    ended = Job.objects.filter(kind=kind, state=State.SUCCEEDED, attempt=1).order_by("-finished_at")
    spans = ended.values_list("started_at", "finished_at")[:REMEMBERED]
    took = sorted((end - start).total_seconds() for start, end in spans if start and end)
    if not took:
        return UNKNOWN
    middle = took[len(took) // 2]
    if len(took) < FEW:
        return middle * FEW_SPREAD[0], middle, middle * FEW_SPREAD[2]
    return took[len(took) // 5], middle, took[-1 - len(took) // 5]


def remaining(job: Job, usual: Seconds) -> Seconds:
    """How long a job at work still takes: what it says itself, else what its kind usually takes."""
    if job.is_stop_requested:
        return STOPPING
    if job.eta_seconds is not None:
        return job.eta_seconds * ETA_SPREAD[0], job.eta_seconds, job.eta_seconds * ETA_SPREAD[2]
    gone = (timezone.now() - job.started_at).total_seconds() if job.started_at else 0.0
    low, expected, high = (max(seconds - gone, seconds * OVERTIME) for seconds in usual)
    return low, expected, high


def prioritise(job: Job, priority: Job.Priority, by: User) -> None:
    """Give a waiting job another priority; it loses the place it was moved to."""
    with transaction.atomic():
        waiting = Job.objects.filter(pk=job.pk, state__in=[State.QUEUED, State.INTERRUPTED])
        if not waiting.update(priority=priority, place=None, own_place=None):
            raise MoveRefused(_("It does not wait any more, so its priority means nothing."))
        job.refresh_from_db(fields=["state", "priority", "place", "own_place"])
        state = State(job.state)
        job.record("prioritise", state, state, actor=str(by), text=str(priority.label))


def decides(job: Job, caller: Caller) -> bool:
    """Whether the caller manages the job's project."""
    return caller.projects(Role.MANAGER).filter(jobs=job).exists()


def companions(job: Job, caller: Caller, user: User, line: list[int]) -> list[int]:
    """The jobs among which this caller may move `job`, itself included, in their order."""
    same = Job.objects.waiting(job.queue).filter(project=job.project_id, priority=job.priority)
    if not decides(job, caller):
        if job.created_by_id != user.pk:
            raise PermissionDenied(_("Only a manager of this project can move other people's jobs."))
        same = same.filter(created_by=user)
    allowed = set(same.values_list("pk", flat=True))
    return [pk for pk in line if pk in allowed]


def step(job: Job, caller: Caller, user: User, *, up: bool) -> None:
    """Change places with the one before or after it that the caller may move; without one, do nothing."""
    line = list(Job.objects.claim_order(job.queue, WorkerNode.objects.slots_by_worker(job.queue)))
    order = companions(job, caller, user, line)
    at = order.index(job.pk) if job.pk in order else -1
    other = at - 1 if up else at + 1
    if at >= 0 and 0 <= other < len(order):
        move(job, caller, user, target=order[other], after=not up)


def move(job: Job, caller: Caller, user: User, *, target: int, after: bool) -> None:
    """Put a waiting job right before or after another one of its project and priority.

    A manager orders all jobs of the project: those up to where the move reaches keep their order, whoever
    comes later. Everybody else exchanges their own jobs among the places that these have.
    """
    with transaction.atomic():
        # Touching the project makes two people who move jobs wait for one another.
        Project.objects.filter(jobs=job).update(name=models.F("name"))
        # Locked, so that no worker takes it before its history says that it was moved while it waited.
        Job.objects.select_for_update().filter(pk=job.pk).first()
        line = list(Job.objects.claim_order(job.queue, WorkerNode.objects.slots_by_worker(job.queue)))
        order = companions(job, caller, user, line)
        if job.pk not in order:
            raise MoveRefused(_("It does not wait any more."))
        if target not in order or target == job.pk:
            raise MoveRefused(
                _("It can only change places with waiting jobs of the same project and priority.")
            )
        moved = [pk for pk in order if pk != job.pk]
        moved.insert(moved.index(target) + after, job.pk)
        (arrange if decides(job, caller) else exchange)(order, moved)
        came = list(Job.objects.claim_order(job.queue, WorkerNode.objects.slots_by_worker(job.queue)))
        words = _("from place %(before)d to place %(after)d") % {
            "before": line.index(job.pk) + 1,
            "after": came.index(job.pk) + 1,
        }
        job.record("move", State.QUEUED, State.QUEUED, actor=str(user), text=words)


def arrange(order: list[int], moved: list[int]) -> None:
    """Number the jobs of a project from the first to the last that changed, or that had a place before."""
    placed = Job.objects.filter(pk__in=order).exclude(place=None).count()
    changed = max(at for at, pk in enumerate(moved) if order[at] != pk) + 1 if order != moved else 0
    rows = Job.objects.only("place").in_bulk(moved[: max(changed, placed)])
    for place, pk in enumerate(moved[: len(rows)], start=1):
        rows[pk].place = place
    Job.objects.bulk_update(rows.values(), ["place"])


def exchange(order: list[int], moved: list[int]) -> None:
    """Give the jobs of one person the places that these jobs have, in another order."""
    rows = Job.objects.only("place", "own_place").in_bulk(order)
    places = [(rows[pk].place, rows[pk].own_place or pk) for pk in order]
    changed = [pk for at, pk in enumerate(moved) if order[at] != pk]
    for pk, (place, own_place) in zip(moved, places, strict=True):
        rows[pk].place, rows[pk].own_place = place, own_place
    Job.objects.bulk_update([rows[pk] for pk in changed], ["place", "own_place"])
