"""The watchman of the storm: every two seconds it looks for rows that stand still and for strays."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

import psutil
from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    close_old_connections,
    connection,
    transaction,
)
from django.db.models.functions import Now

from dashboard.models import Job, State, WorkerNode
from dashboard.models.jobs.job_state import LIVE
from tests.chaos.stage import Stage
from tests.chaos.storm import Hit

log = logging.getLogger(__name__)
LOOK_SECONDS = 2.0
STUCK_SECONDS = 120.0  # beside the time in which a process that alone could move the row stood still
STRAY_SECONDS = 20.0
EVALUATIONS_KEPT = 10  # of this many one is really run; the others are stopped while they wait


@dataclass(frozen=True)
class Standing:
    """A row in a state that it has to leave. `by_dispatcher`: nobody else can move it."""

    job: int
    attempt: int
    why: str
    by_dispatcher: bool


@dataclass
class Watch:
    """What stood still or ran without a master, and for how long. `hits` is the storm's own growing list."""

    stage: Stage
    hits: list[Hit] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    stuck: dict[str, float] = field(default_factory=dict)
    strays: dict[int, str] = field(default_factory=dict)
    ended: int = 0
    open_jobs: int = -1
    since: dict[object, float] = field(default_factory=dict)

    def run(self) -> None:
        """Until told to stop."""
        while not self.over.wait(LOOK_SECONDS):
            try:
                self.look()
            except (DatabaseError, InterfaceError):
                log.warning("the watchman could not read the database", exc_info=True)
                close_old_connections()

    def look(self) -> None:
        """One round."""
        if self._is_locked():
            self.since = {}
            return
        for job in Job.objects.filter(kind=Job.Kind.EVALUATE, state=State.QUEUED):
            if job.pk % EVALUATIONS_KEPT:
                job.request_cancel()
        over = ("succeeded", "failed", "cancelled")
        self.ended = Job.objects.filter(kind=Job.Kind.TRAIN, state__in=over).count()
        rows = list(Job.objects.exclude(state__in=over).annotate(db_now=Now()))
        self.open_jobs = len(rows)
        if not all(line.carries for line in self.stage.lines.values()):
            # Without its servers nothing moves; it has to get on once they are back.
            self.since = {}
            return
        idle = self._idle_queues()
        now = time.monotonic()
        standing: set[object] = {one for job in rows for one in self._standings(job, job.db_now, idle)}
        standing |= {process.pid for process in self.stage.strays()}
        self.since = {what: self.since.get(what, now) for what in standing}
        for what, began in self.since.items():
            stood = now - began
            if isinstance(what, int) and stood > STRAY_SECONDS:
                self.strays[what] = f"process {what} ran {stood:.0f} s without a master"
            elif isinstance(what, Standing) and stood - self._held_up(what, stood) > STUCK_SECONDS:
                self.stuck[f"job {what.job}: {what.why}"] = stood

    def _standings(self, job: Job, now: datetime, idle: set[str]) -> Iterable[Standing]:
        if why := self._stands_still(job, now, idle):
            yield Standing(job.pk, job.attempt, why, by_dispatcher=True)
        if job.state in LIVE:
            why = f"attempt {job.attempt} {job.state}, {job.phase or 'no phase'}, step {job.step}"
            holder_is_gone = not psutil.pid_exists(job.pid or 0)
            yield Standing(job.pk, job.attempt, why, by_dispatcher=holder_is_gone)

    def _held_up(self, what: Standing, stood: float) -> float:
        """For how many of these last seconds a process stood still, paused, that alone could move the row."""
        until = time.time()
        since, seconds = until - stood, 0.0
        for hit in list(self.hits):
            holds = (what.job, what.attempt) in hit.held or (what.by_dispatcher and hit.role == "dispatcher")
            if hit.is_pause and holds:
                seconds += max(0.0, min(until, hit.at + hit.seconds) - max(since, hit.at))
        return seconds

    def _paused(self) -> set[int]:
        """Processes that stand still now, and their parents: a node whose pool is paused takes nothing."""
        now, found = time.time(), set()
        for hit in list(self.hits):
            if hit.is_pause and now < hit.at + hit.seconds:
                found.add(hit.pid)
                with contextlib.suppress(psutil.Error):
                    found.add(psutil.Process(hit.pid).ppid())
        return found

    def _is_locked(self) -> bool:
        """Whether SQLite's one lock for writing went to sleep with a paused process: then no row can move."""
        if connection.vendor != "sqlite" or not self._paused():
            return False
        try:
            with transaction.atomic():
                return False
        except OperationalError:
            return True

    def _idle_queues(self) -> set[str]:
        """Queues with a node that could take a job now."""
        idle, paused = set(), self._paused()
        for queue in Job.Queue.values:
            nodes = WorkerNode.objects.alive().filter(queue=queue, draining=False).exclude(pid__in=paused)
            if nodes.count() > Job.objects.live().filter(queue=queue).count():
                idle.add(queue)
        return idle

    def _stands_still(self, job: Job, now: datetime, idle: set[str]) -> str:
        """Why this row should have moved, or ""."""
        if job.state in LIVE and job.lease_until and job.lease_until < now:
            return f"{job.state} with an expired lease"
        if job.state == State.INTERRUPTED and job.run_after < now:
            return "interrupted after its back-off"
        if job.state == State.QUEUED and job.run_after < now and job.queue in idle:
            return "queued beside an idle node"
        return ""
