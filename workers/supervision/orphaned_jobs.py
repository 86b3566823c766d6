"""Orphaned jobs: live jobs whose process has died, as a process of the same place can see.

Nodes and dispatchers release them every few seconds, without waiting for the lease.
"""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from typing import TypedDict

from django.db.models import Q

from dashboard.models import IllegalMove, Job
from dashboard.models.jobs.job_state import LEASE, db_now
from workers.supervision import device_lock
from workers.supervision.process_identity import birth, here, living, uptime

# A running holder renews its lease every ten seconds.
SILENT_SECONDS = 30.0


class Holder(TypedDict):
    """The process that holds a job."""

    host: str
    pid: int
    pid_started: float


def holder() -> Holder:
    """Identify this process as a job's holder; without a known place only the lease can release its jobs."""
    place, born = here(), birth(os.getpid())
    host = str(place) if place and born else ""
    return {"host": host, "pid": os.getpid(), "pid_started": born or 0.0}


def release_orphaned_jobs() -> int:
    """Interrupt live jobs whose process, of this or an earlier boot, is gone; return their count."""
    place = here()
    if place is None:
        return 0
    # No process survives a reboot. But a copy of the machine has the same machine id, so a holder that
    # renewed its lease since this boot runs there.
    silent_since = db_now(LEASE - timedelta(seconds=max(SILENT_SECONDS, uptime())))
    of_earlier_boot = Q(host__startswith=place.earlier_starts, lease_until__lt=silent_since)
    released = 0
    for job in Job.objects.live().filter(of_earlier_boot | Q(host=str(place))):
        if job.host == str(place):
            if living(job.pid, job.pid_started):
                continue
            if child := living(job.child_pid, job.child_started):
                device_lock.kill(child)
        # Another process may release it at the same moment.
        with contextlib.suppress(IllegalMove, Job.DoesNotExist):
            job.recover("Its worker process is gone.")
            released += 1
    return released
