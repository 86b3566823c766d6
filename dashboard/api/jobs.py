"""The queue: the project's jobs, where they stand, and how to stop one."""

from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Any, Literal

from django.db.models import Prefetch, QuerySet
from django.utils.translation import gettext as _
from ninja import Router, Schema, Status
from ninja.pagination import paginate
from pydantic import ConfigDict, StrictInt

from dashboard.api.access import Call, do_once
from dashboard.api.failures import Failure
from dashboard.api.paging import Newest, Rows
from dashboard.api.refusals import READING, WRITING, Nothing, Refusal, invalid
from dashboard.models import BaseModel, DatasetVersion, Evaluation, Job, JobEvent, Role, State, TrainingRun
from dashboard.models import queue as order
from dashboard.stages import time_left

# No postponed annotations here: below `paginate` the framework could not resolve `State` by its name.
router = Router()


class JobOut(Schema):
    """One piece of work. `step` and `total_steps` have the unit of `phase`; `run`, `dataset` and
    `base_model` say what it works for. `starts_at`: when it probably starts; null when it does not wait or
    there is nothing to go by. `priority`: high, normal or low."""

    id: int
    kind: str
    state: str
    queue: str
    priority: str
    starts_at: datetime | None
    phase: str | None
    step: int
    total_steps: int
    eta_seconds: float | None
    attempt: int
    run: int | None
    dataset: int | None
    base_model: int | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: Failure | None


class JobDetailOut(JobOut):
    """A job with its place: 1 for the next of its queue to start, null when it does not wait."""

    position: int | None


class JobIn(Schema):
    """What a manager may change of a waiting job."""

    model_config = ConfigDict(extra="forbid")

    priority: Literal["high", "normal", "low"] | None = None


class MoveIn(Schema):
    """The waiting job right before or right after which it shall stand: one of the two."""

    model_config = ConfigDict(extra="forbid")

    before: StrictInt | None = None
    after: StrictInt | None = None


class JobEventOut(Schema):
    """One line of a job's history, in words."""

    id: int
    attempt: int
    event: str
    state: str
    level: str
    message: str
    at: datetime


def expected_starts() -> Callable[[Job | None], datetime | None]:
    """When a job probably starts. Asks the database once for all jobs, and only if one of them waits."""
    outlook = cache(order.QueueForecast.read)

    def starts_at(job: Job | None) -> datetime | None:
        waits = job is not None and job.state == State.QUEUED
        start = outlook().starts.get(job.pk) if job and waits else None
        return start.at if start else None

    return starts_at


def facts(job: Job, starts_at: Callable[[Job | None], datetime | None]) -> dict[str, Any]:
    """What a list says of a job."""
    runs = [run.pk for run in job.training_runs.all()] + [one.run_id for one in job.evaluations.all()]
    datasets = [version.dataset_id for version in job.dataset_versions.all()]
    base_models = [base_model.pk for base_model in job.base_models.all()]
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
        "run": next(iter(runs), None),
        "dataset": next(iter(datasets), None),
        "base_model": next(iter(base_models), None),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "error": job.error,
    }


def event_facts(event: JobEvent) -> dict[str, Any]:
    """What a list says of an event."""
    return {
        "id": event.pk,
        "attempt": event.attempt,
        "event": event.event,
        "state": event.to_state,
        "level": event.level,
        "message": event.description,
        "at": event.created_at,
    }


def with_subjects() -> Any:
    """Jobs with what they are about, so that a line needs no query of its own."""
    return Job.objects.prefetch_related(
        Prefetch("training_runs", TrainingRun.objects.only("job")),
        Prefetch("dataset_versions", DatasetVersion.objects.only("job", "dataset")),
        Prefetch("base_models", BaseModel.objects.only("job")),
        Prefetch("evaluations", Evaluation.objects.only("job", "run")),
    ).defer("spec")


@router.get("", response={200: list[JobOut], **READING})
@paginate(Newest)
def index(request: Call, state: State | None = None) -> Rows:
    """The project's jobs; `state` narrows them down."""
    jobs: QuerySet[Job] = with_subjects().visible_to(request.auth)
    starts_at = expected_starts()
    return Rows(jobs.filter(state=state) if state else jobs, lambda job: facts(job, starts_at))


@router.get("/{int:pk}", response={200: JobDetailOut, **READING})
def detail(request: Call, pk: int) -> dict[str, Any]:
    """One job, with its place in the queue."""
    job = with_subjects().fetch(request.auth, pk)
    outlook = order.QueueForecast.read([job.queue])
    start = outlook.starts.get(job.pk)
    return {
        **facts(job, lambda _job: start.at if start else None),
        "position": outlook.places.get(job.pk),
    }


@router.patch("/{int:pk}", response={200: JobDetailOut, **WRITING}, url_name="job-detail")
def change(request: Call, pk: int, payload: JobIn) -> dict[str, Any]:
    """Give a waiting job another priority; managers only. It loses the place it was moved to."""
    job = Job.objects.fetch(request.auth, pk, Role.MANAGER)
    if payload.priority is None:
        raise invalid("priority", _("Choose high, normal or low."))
    try:
        order.prioritise(job, Job.Priority[payload.priority.upper()], request.auth.user)
    except order.MoveRefused as refusal:
        raise Refusal(409, "not_waiting", str(refusal)) from refusal
    return detail(request, pk)


@router.post("/{int:pk}/move", response={200: JobDetailOut, **WRITING})
def move(request: Call, pk: int, payload: MoveIn) -> dict[str, Any]:
    """Put it before or after another waiting job of its project and priority. Editors move their own jobs
    among their own, managers all."""
    job = Job.objects.fetch(request.auth, pk, Role.EDITOR)
    if (payload.before is None) == (payload.after is None):
        raise invalid("before", _("Say either `before` or `after`: the id of another waiting job."))
    field = "before" if payload.after is None else "after"
    target = payload.before if payload.after is None else payload.after
    try:
        order.move(job, request.auth, request.auth.user, target=target or 0, after=field == "after")
    except order.MoveRefused as refusal:
        raise Refusal(409, "cannot_move", str(refusal), field) from refusal
    return detail(request, pk)


@router.get("/{int:pk}/events", response={200: list[JobEventOut], **READING})
@paginate(Newest)
def events(request: Call, pk: int) -> Rows:
    """What happened to it, in words."""
    return Rows(Job.objects.fetch(request.auth, pk).events.all(), event_facts)


@router.post("/{int:pk}/cancel", response={202: JobDetailOut, **WRITING})
def cancel(request: Call, pk: int, payload: Nothing | None = None) -> Status[dict[str, Any]]:
    """Stop it with every run in it: at once while it waits, within seconds while it works."""
    job = Job.objects.fetch(request.auth, pk, Role.EDITOR)
    do_once(request, f"cancel {pk}", lambda: stop(request, job))
    return Status(202, detail(request, pk))


def stop(request: Call, job: Job) -> None:
    """Ask the job to stop, with every run in it. One that has ended is refused."""
    if job.request_cancel(request.auth.user):
        return
    message = _("It has already ended: %(state)s.") % {"state": job.state}
    if not job.is_over:
        message = _("There is nothing left to stop: its training has ended, and the result is kept.")
    raise Refusal(409, "already_ended", message)
