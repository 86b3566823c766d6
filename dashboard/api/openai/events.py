"""The events of a job, newest first: its history, and the metrics of each step."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.utils import timezone
from ninja import Router

from dashboard.api.access import Call
from dashboard.api.openai.jobs import fetch
from dashboard.api.openai.lists import DEFAULT_LIMIT, After, Limit, listing, seconds, wrong_after
from dashboard.api.openai.metrics import curves_of, values_at
from dashboard.api.refusals import refuse_others
from dashboard.models import JobEvent, TrainingRun

router = Router()
PREFIX = "ftevent-"
LEVELS = {"warning": "warn", "warn": "warn", "error": "error"}
FAILURES = ("fail", "give_up")


@router.get("/{str:job}/events")
def index(request: Call, job: str, limit: Limit = DEFAULT_LIMIT, after: After = "") -> dict[str, Any]:
    """List the events of a job."""
    refuse_others(list(request.GET), ["limit", "after"])
    events = newest_first(fetch(request, job))
    if after and after not in (event["id"] for event in events):
        raise wrong_after()
    return listing(events, limit)


def newest_first(run: TrainingRun) -> Iterator[dict[str, Any]]:
    """Yield the events of the run's job and of its steps."""
    history = list(JobEvent.objects.filter(job=run.job_id).order_by("-seq"))
    steps = step_events(run, history)
    step = next(steps, None)
    for event in history:
        while step and step["created_at"] > event.created_at.timestamp():
            yield rounded(step)
            step = next(steps, None)
        yield serialize_event(event)
    if step:
        yield rounded(step)
    yield from map(rounded, steps)


def step_events(run: TrainingRun, history: list[JobEvent]) -> Iterator[dict[str, Any]]:
    """Yield an event for each step. Times of steps are not stored: they are spread over the training."""
    curves = curves_of(run)
    losses = curves["train_loss"]
    started = next(
        (event.created_at for event in reversed(history) if event.event == "progress"), run.created_at
    )
    ended = (run.job and run.job.finished_at) or timezone.now()
    last, total_steps = max(losses, default=0), run.total_steps
    for step in sorted(losses, reverse=True):
        yield {
            "id": f"{PREFIX}{run.pk}-{step}",
            "object": "fine_tuning.job.event",
            "created_at": time_between(started, ended, step / last),
            "level": "info",
            "message": f"Step {step}/{total_steps}: training loss={losses[step]:.4f}",
            "type": "metrics",
            "data": {"step": step, "total_steps": total_steps, **values_at(curves, step)},
        }


def time_between(started: datetime, ended: datetime, share: float) -> float:
    """Return a time within the training as Unix seconds, just before its end for the last step."""
    return started.timestamp() + (ended - started).total_seconds() * min(share, 0.999)


def rounded(event: dict[str, Any]) -> dict[str, Any]:
    """Return the event with whole seconds."""
    return {**event, "created_at": int(event["created_at"])}


def serialize_event(event: JobEvent) -> dict[str, Any]:
    """Return the event object of an entry in the job's history."""
    level = "error" if event.event in FAILURES else LEVELS.get(event.level, "info")
    return {
        "id": f"{PREFIX}{event.pk}",
        "object": "fine_tuning.job.event",
        "created_at": seconds(event.created_at),
        "level": level,
        "message": event.description,
        "type": "message",
        "data": None,
    }
