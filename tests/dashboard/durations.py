"""Sets expected and measured times of runs and jobs."""

from __future__ import annotations

from datetime import datetime, timedelta

from dashboard.models import (
    Job,
    JobEvent,
    TrainingRun,
)
from tests.conftest import rewrite


def expect(run: TrainingRun, seconds: float) -> TrainingRun:
    """Set the forecast of the run's seconds."""
    run.forecast = {**run.forecast, "seconds": {"expected": seconds, "low": seconds, "high": seconds}}
    run.save(update_fields=["forecast"])
    return run


def held(job: Job | None, begin: datetime, seconds: float) -> None:
    """Set begin and end of the ended job's only attempt."""
    assert job is not None
    events = JobEvent.objects.filter(job=job)
    rewrite(events.filter(event="claim"), created_at=begin)
    end = begin + timedelta(seconds=seconds)
    rewrite(events.filter(event__in=["succeed", "fail", "stopped"]), created_at=end)
    Job.objects.filter(pk=job.pk).update(finished_at=end)
