"""A supervisor keeps its job's lease, whatever its engine says."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from dashboard.models import Job, State, TrainingRun
from tests.workers.conftest import claim, run_script
from workers.supervision import supervisor

SILENT = "time.sleep(60)\n"


@pytest.fixture
def job(run: TrainingRun) -> Job:
    return claim("gpu")


def test_a_silent_engine_costs_nobody_the_lease(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RENEW_SECONDS", 0.2)
    leases: list[datetime] = []
    began = time.monotonic()

    def is_time_to_go() -> bool:
        """Asked by the supervisor in each of its turns."""
        lease = Job.objects.values_list("lease_until", flat=True).get(pk=job.pk)
        if lease and lease not in leases:
            leases.append(lease)
        return len(leases) > 3 or time.monotonic() - began > 20

    ended = run_script(SILENT, job, monkeypatch, is_time_to_go)
    assert len(leases) > 3, "it was not renewed"
    assert leases == sorted(leases)
    assert (ended.state, ended.attempt) == (State.INTERRUPTED, 1)
