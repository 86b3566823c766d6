"""The watchman of the storm: every two seconds it looks for rows that stand still and for strays."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime

from django.db import DatabaseError, InterfaceError, close_old_connections
from django.db.models.functions import Now

from dashboard.models import Job, State, WorkerNode
from dashboard.models.job_state import LIVE
from tests.chaos.stage import Stage

log = logging.getLogger(__name__)
LOOK_SECONDS = 2.0
STUCK_SECONDS = 120.0  # beside the length of a pause, for what only the paused process moves
STRAY_SECONDS = 20.0
EVALUATIONS_KEPT = 10  # of this many one is really run; the others are stopped while they wait


@dataclass
class Watch:
    """What stood still or ran without a master, and for how long."""

    stage: Stage
    pause_seconds: float = 0.0
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
        standing: set[object] = set()
        for job in rows:
            if why := self._stands_still(job, job.db_now, idle):
                standing.add((job.pk, why, STUCK_SECONDS))
            if job.state in LIVE:
                why = f"attempt {job.attempt} {job.state}, {job.phase or 'no phase'}, step {job.step}"
                standing.add((job.pk, why, STUCK_SECONDS + self.pause_seconds))
        for process in self.stage.strays():
            standing.add(process.pid)
        self.since = {what: self.since.get(what, now) for what in standing}
        for what, began in self.since.items():
            if isinstance(what, int) and now - began > STRAY_SECONDS:
                self.strays[what] = f"process {what} ran {now - began:.0f} s without a master"
            elif isinstance(what, tuple) and now - began > what[-1]:
                self.stuck[f"job {what[0]}: {what[1]}"] = now - began

    def _idle_queues(self) -> set[str]:
        """Queues with a node that could take a job now."""
        idle = set()
        for queue in Job.Queue.values:
            nodes = WorkerNode.objects.alive().filter(queue=queue, draining=False).count()
            if nodes > Job.objects.live().filter(queue=queue).count():
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
