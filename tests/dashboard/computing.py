"""Times as tests want them: what a run is expected to take, and when a worker held a job."""

from __future__ import annotations

from datetime import datetime, timedelta

from dashboard.models import (
    Job,
    JobEvent,
    TrainingRun,
)
from tests.conftest import rewrite


def expect(run: TrainingRun, seconds: float) -> TrainingRun:
    """The run with a forecast of so many seconds."""
    run.forecast = {**run.forecast, "seconds": {"expected": seconds, "low": seconds, "high": seconds}}
    run.save(update_fields=["forecast"])
    return run


def held(job: Job | None, begin: datetime, seconds: float) -> None:
    """Let the ended job's only attempt have held its worker from `begin` on."""
    assert job is not None
    events = JobEvent.objects.filter(job=job)
    rewrite(events.filter(event="claim"), created_at=begin)
    end = begin + timedelta(seconds=seconds)
    rewrite(events.filter(event__in=["succeed", "fail", "stopped"]), created_at=end)
    Job.objects.filter(pk=job.pk).update(finished_at=end)
