"""The queue: the project's jobs, their state and history, their priority, and stopping one."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Literal

from django.db.models import QuerySet
from django.utils.translation import gettext as _
from ninja import Router, Schema, Status
from pydantic import ConfigDict

from dashboard.api.access import Call, do_once
from dashboard.api.answer import Answer, Time
from dashboard.api.failures import Failure
from dashboard.api.pagination import Newest, Rows, listing
from dashboard.api.refusals import READING, WRITING, Nothing, Refusal, invalid
from dashboard.models import (
    BaseModel,
    DatasetVersion,
    Evaluation,
    IllegalMove,
    Job,
    JobEvent,
    Role,
    State,
    TrainingRun,
)
from dashboard.models.jobs.queue_forecast import QueueForecast
from dashboard.presenters.stages import time_left

# No postponed annotations here: below `listing` the framework could not resolve `State` by its name.
router = Router()


class JobOut(Answer):
    """One job of the queue. `step` and `total_steps` are counted in the unit of `phase`. `run`, `dataset`
    and `base_model` identify what it works for. `starts_at`: the estimated start; null when the job does not
    wait or no estimate is possible. `priority`: high, normal or low."""

    id: int
    kind: str
    state: str
    queue: str
    priority: str
    starts_at: Time | None
    phase: str | None
    step: int
    total_steps: int
    eta_seconds: float | None
    attempt: int
    run: int | None
    dataset: int | None
    base_model: int | None
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    error: Failure | None


class JobDetailOut(JobOut):
    """A job with its `position`: 1 starts next in its queue; null when the job does not wait."""

    position: int | None


class JobIn(Schema):
    """The fields of a waiting job that a manager may change."""

    model_config = ConfigDict(extra="forbid")

    priority: Literal["high", "normal", "low"] | None = None


class JobEventOut(Answer):
    """One event of a job's history, with a readable `message`."""

    id: int
    attempt: int
    event: str
    state: str
    level: str
    message: str
    at: Time


def expected_starts() -> Callable[[Job | None], datetime | None]:
    """Return a function for a job's estimated start. It reads the queues once, and only if a job waits."""
    forecast = cache(QueueForecast.read)

    def starts_at(job: Job | None) -> datetime | None:
        waits = job is not None and job.state == State.QUEUED
        start = forecast().starts.get(job.pk) if job and waits else None
        return start.at if start else None

    return starts_at


class Subjects:
    """Ids of what jobs work for, read once for all of them and without a model row for each."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        keys = [job.pk for job in jobs]
        # Of several the first counts, and a training before its evaluations.
        runs = TrainingRun.objects.filter(job__in=keys).values_list("job_id", "pk")
        scored = Evaluation.objects.filter(job__in=keys).values_list("job_id", "run_id")
        versions = DatasetVersion.objects.filter(job__in=keys).values_list("job_id", "dataset_id")
        base_models = BaseModel.objects.filter(job__in=keys).values_list("job_id", "pk")
        self.runs = first_of([*runs, *scored])
        self.datasets, self.base_models = first_of(versions), first_of(base_models)


def first_of(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return job -> the first id that is paired with it."""
    found: dict[int, int] = {}
    for job, pk in pairs:
        found.setdefault(job, pk)
    return found


def serialize_job(
    job: Job, subjects: Subjects, starts_at: Callable[[Job | None], datetime | None]
) -> dict[str, Any]:
    return {
        "id": job.pk,
        "kind": job.kind,
        "state": job.state,
        "queue": job.queue,
        "priority": Job.Priority(job.priority).name.lower(),
        "starts_at": starts_at(job),
        "phase": job.phase or None,
        "step": job.step,
        "total_steps": job.total_steps,
        "eta_seconds": time_left(job),
        "attempt": job.attempt,
        "run": subjects.runs.get(job.pk),
        "dataset": subjects.datasets.get(job.pk),
        "base_model": subjects.base_models.get(job.pk),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "error": job.error,
    }


def serialize_event(event: JobEvent) -> dict[str, Any]:
    return {
        "id": event.pk,
        "attempt": event.attempt,
        "event": event.event,
        "state": event.to_state,
        "level": event.level,
        "message": event.description,
        "at": event.created_at,
    }


@router.get("", response={200: list[JobOut], **READING})
@listing(Newest)
def index(request: Call, state: State | None = None) -> Rows:
    """List the project's jobs, all or those in one `state`."""
    jobs: QuerySet[Job] = Job.objects.defer("spec").visible_to(request.auth)
    starts_at = expected_starts()
    subjects: list[Subjects] = []
    return Rows(
        jobs.filter(state=state) if state else jobs,
        lambda job: serialize_job(job, subjects[0], starts_at),
        lambda page: subjects.append(Subjects(page)),
    )


@router.get("/{int:pk}", response={200: JobDetailOut, **READING})
def detail(request: Call, pk: int) -> dict[str, Any]:
    """Return one job, with its position in the queue."""
    job = Job.objects.defer("spec").fetch(request.auth, pk)
    position, start = QueueForecast.for_job(job).estimate_for(job)
    answer = serialize_job(job, Subjects([job]), lambda _job: start.at if start else None)
    return {**answer, "position": position}


@router.patch("/{int:pk}", response={200: JobDetailOut, **WRITING}, url_name="job-detail")
def change(request: Call, pk: int, payload: JobIn) -> dict[str, Any]:
    """Change the priority of a waiting job; managers only. 409 `not_waiting` once it has started."""
    job = Job.objects.fetch(request.auth, pk, Role.MANAGER)
    if payload.priority is None:
        raise invalid("priority", _("Choose high, normal or low."))
    try:
        job.set_priority(Job.Priority[payload.priority.upper()], request.auth.user)
    except IllegalMove as refusal:
        raise Refusal(409, "not_waiting", str(refusal)) from refusal
    return detail(request, pk)


@router.get("/{int:pk}/events", response={200: list[JobEventOut], **READING})
@listing(Newest)
def events(request: Call, pk: int) -> Rows:
    """List the job's history: changes of state and messages of the engine."""
    return Rows(Job.objects.fetch(request.auth, pk).events.all(), serialize_event)


@router.post("/{int:pk}/cancel", response={202: JobDetailOut, **WRITING})
def cancel(request: Call, pk: int, payload: Nothing | None = None) -> Status[dict[str, Any]]:
    """Stop the job with all its runs: at once while it waits, within seconds while it runs."""
    job = Job.objects.fetch(request.auth, pk, Role.EDITOR)
    do_once(request, f"cancel {pk}", lambda: stop(request, job))
    return Status(202, detail(request, pk))


def stop(request: Call, job: Job) -> None:
    """Request the stop of a job, or refuse with 409 `already_ended`."""
    if job.request_cancel(request.auth.user):
        return
    message = _("It has already ended: %(state)s.") % {"state": job.state}
    if not job.is_over:
        message = _("There is nothing left to stop: the training has ended and its result is kept.")
    raise Refusal(409, "already_ended", message)
