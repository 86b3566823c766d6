"""The monitor of an experiment: looks every two seconds for stalled rows and orphaned processes."""

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
from dashboard.models.jobs.job_state import LIVE, TERMINAL
from tests.chaos.storm import InjectedFault
from tests.chaos.target import Target

log = logging.getLogger(__name__)
INTERVAL_SECONDS = 2.0
STALLED_SECONDS = 120.0  # without the pauses of the process that alone could change the row
ORPHANED_SECONDS = 20.0
EVALUATIONS_RUN = 10  # one in so many runs; the others are cancelled while they wait


@dataclass(frozen=True)
class WaitingRow:
    """A row in a state that it must leave. `for_dispatcher`: only the dispatcher can change it."""

    job: int
    attempt: int
    reason: str
    for_dispatcher: bool


@dataclass
class Monitor:
    """Records stalled rows and orphaned processes. `injected` is the injector's own growing list."""

    target: Target
    injected: list[InjectedFault] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    stalled: dict[str, float] = field(default_factory=dict)
    orphans: dict[int, str] = field(default_factory=dict)
    ended: int = 0
    open_jobs: int = -1
    since: dict[object, float] = field(default_factory=dict)

    def run(self) -> None:
        while not self.stopped.wait(INTERVAL_SECONDS):
            try:
                self.observe()
            except (DatabaseError, InterfaceError):
                log.warning("the monitor could not read the database", exc_info=True)
                close_old_connections()

    def observe(self) -> None:
        """Compare rows and processes with those of earlier observations."""
        if self._is_locked():
            self.since = {}
            return
        for job in Job.objects.filter(kind=Job.Kind.EVALUATE, state=State.QUEUED):
            if job.pk % EVALUATIONS_RUN:
                job.request_cancel()
        self.ended = Job.objects.filter(kind=Job.Kind.TRAIN, state__in=TERMINAL).count()
        rows = list(Job.objects.exclude(state__in=TERMINAL).annotate(db_now=Now()))
        self.open_jobs = len(rows)
        if not all(proxy.carries for proxy in self.target.proxies.values()):
            # Nothing can change without the servers.
            self.since = {}
            return
        idle = self._idle_queues()
        now = time.monotonic()
        seen: set[object] = {row for job in rows for row in self._waiting_rows(job, job.db_now, idle)}
        seen |= {process.pid for process in self.target.orphans()}
        self.since = {item: self.since.get(item, now) for item in seen}
        for item, began in self.since.items():
            seconds = now - began
            if isinstance(item, int) and seconds > ORPHANED_SECONDS:
                self.orphans[item] = f"process {item} ran {seconds:.0f} s without a parent"
            elif (
                isinstance(item, WaitingRow)
                and seconds - self._paused_seconds(item, seconds) > STALLED_SECONDS
            ):
                self.stalled[f"job {item.job}: {item.reason}"] = seconds

    def _waiting_rows(self, job: Job, now: datetime, idle: set[str]) -> Iterable[WaitingRow]:
        if reason := self._overdue(job, now, idle):
            yield WaitingRow(job.pk, job.attempt, reason, for_dispatcher=True)
        if job.state in LIVE:
            reason = f"attempt {job.attempt} {job.state}, {job.phase or 'no phase'}, step {job.step}"
            is_holder_gone = not psutil.pid_exists(job.pid or 0)
            yield WaitingRow(job.pk, job.attempt, reason, for_dispatcher=is_holder_gone)

    def _paused_seconds(self, row: WaitingRow, seconds: float) -> float:
        """Return how long, of the last `seconds`, the process that could change the row was paused."""
        now = time.time()
        paused = 0.0
        for fault in list(self.injected):
            holds = (row.job, row.attempt) in fault.held or (
                row.for_dispatcher and fault.role == "dispatcher"
            )
            if fault.is_pause and holds:
                paused += max(0.0, min(now, fault.at + fault.seconds) - max(now - seconds, fault.at))
        return paused

    def _paused_pids(self) -> set[int]:
        """Return the paused processes and their parents: a node whose pool is paused takes no job."""
        now, pids = time.time(), set()
        for fault in list(self.injected):
            if fault.is_pause and now < fault.at + fault.seconds:
                pids.add(fault.pid)
                with contextlib.suppress(psutil.Error):
                    pids.add(psutil.Process(fault.pid).ppid())
        return pids

    def _is_locked(self) -> bool:
        """Return whether a paused process holds SQLite's only write lock: then no row can change."""
        if connection.vendor != "sqlite" or not self._paused_pids():
            return False
        try:
            with transaction.atomic():
                return False
        except OperationalError:
            return True

    def _idle_queues(self) -> set[str]:
        """Return the queues with a node that could take a job now."""
        idle, paused = set(), self._paused_pids()
        for queue in Job.Queue.values:
            nodes = WorkerNode.objects.alive().filter(queue=queue, draining=False).exclude(pid__in=paused)
            if nodes.count() > Job.objects.live().filter(queue=queue).count():
                idle.add(queue)
        return idle

    def _overdue(self, job: Job, now: datetime, idle: set[str]) -> str:
        """Return why the dispatcher should have changed this row; "" if not."""
        if job.state in LIVE and job.lease_until and job.lease_until < now:
            return f"{job.state} with an expired lease"
        if job.state == State.INTERRUPTED and job.run_after < now:
            return "interrupted after its back-off"
        if job.state == State.QUEUED and job.run_after < now and job.queue in idle:
            return "queued beside an idle node"
        return ""
