"""A supervisor renews its job's lease while its engine is silent."""

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


def test_lease_is_renewed_while_the_engine_is_silent(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RENEW_SECONDS", 0.2)
    leases: list[datetime] = []
    began = time.monotonic()

    def is_draining() -> bool:
        lease = Job.objects.values_list("lease_until", flat=True).get(pk=job.pk)
        if lease and lease not in leases:
            leases.append(lease)
        return len(leases) > 3 or time.monotonic() - began > 20

    ended = run_script(SILENT, job, monkeypatch, is_draining)
    assert len(leases) > 3, "it was not renewed"
    assert leases == sorted(leases)
    assert (ended.state, ended.attempt) == (State.INTERRUPTED, 1)
