"""Memory that the trainings on this machine are forecast to take beyond what they hold now."""

from __future__ import annotations

import contextlib

import psutil

from dashboard.models import Job, WorkerNode
from workers.forecasting.training_cost import device_kind
from workers.supervision.process_identity import here, living


def promised_bytes() -> int:
    """Return the bytes that live trainings are still to take; 0 for those on a card, or in unknown places."""
    place = here()
    if place is None:
        return 0
    jobs = Job.objects.live().filter(kind=Job.Kind.TRAIN, host=str(place))
    return sum(_missing_bytes(job) for job in jobs)


def _missing_bytes(job: Job) -> int:
    if device_kind(WorkerNode.objects.device_of(job.worker)) != "cpu":
        return 0
    forecasts = job.training_runs.filter(outcome="").values_list("forecast", flat=True)
    # All arms of a job share the base model, which is most of each forecast.
    peak = max(
        (forecast.get("peak_memory_bytes", {}).get("expected", 0) for forecast in forecasts), default=0
    )
    held = 0
    with contextlib.suppress(psutil.Error):
        engine = living(job.child_pid, job.child_started)
        held = engine.memory_info().rss if engine else 0
    return max(0, int(peak) - held)
