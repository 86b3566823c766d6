"""Live jobs whose process is gone: whoever runs at the same place can prove it and need not await the lease.

Nodes and dispatchers look often, so that a dead node's jobs do not wait until it has started again.
"""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from typing import TypedDict

from django.db.models import Q

from dashboard.models import IllegalMove, Job
from dashboard.models.job_state import LEASE, db_now
from workers import slots
from workers.identity import birth, here, living, uptime

# A living holder renews its lease every ten seconds.
SILENT_SECONDS = 30.0


class Holder(TypedDict):
    """Which process works on a job."""

    host: str
    pid: int
    pid_started: float


def holder() -> Holder:
    """How this process signs the jobs that it holds. One that cannot tell its place is judged by nobody."""
    place, born = here(), birth(os.getpid())
    host = str(place) if place and born else ""
    return {"host": host, "pid": os.getpid(), "pid_started": born or 0.0}


def release_abandoned_jobs() -> int:
    """Interrupt live jobs whose process, here or before this start of the machine, is gone; how many."""
    place = here()
    if place is None:
        return 0
    # No process outlives the start of the machine in which it was born. But a copy of the machine has all its
    # names, so whoever was heard from in this start lives elsewhere.
    unheard = db_now(LEASE - timedelta(seconds=max(SILENT_SECONDS, uptime())))
    before = Q(host__startswith=place.earlier_starts, lease_until__lt=unheard)
    released = 0
    for job in Job.objects.live().filter(before | Q(host=str(place))):
        if job.host == str(place):
            if living(job.pid, job.pid_started):
                continue
            if child := living(job.child_pid, job.child_started):
                slots.kill(child)
        # Somebody else may see it at the same moment.
        with contextlib.suppress(IllegalMove, Job.DoesNotExist):
            job.recover("Its worker process is gone.")
            released += 1
    return released
