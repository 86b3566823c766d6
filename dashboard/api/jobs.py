"""The queue: the project's jobs, where they stand, and how to stop one."""

from datetime import datetime
from typing import Any

from django.db.models import Prefetch, QuerySet
from django.utils.translation import gettext as _
from ninja import Router, Schema, Status
from ninja.pagination import paginate

from dashboard.api.access import Call, done_before, first_time
from dashboard.api.failures import Failure
from dashboard.api.paging import Newest, Rows
from dashboard.api.refusals import READING, WRITING, Refusal
from dashboard.models import BaseModel, DatasetVersion, Evaluation, Job, JobEvent, Role, State, TrainingRun

# No postponed annotations here: below `paginate` the framework could not resolve `State` by its name.
router = Router()


class JobOut(Schema):
    """One piece of work. `step` and `total_steps` have the unit of `phase`; `run`, `dataset` and
    `base_model` say what it works for."""

    id: int
    kind: str
    state: str
    queue: str
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


class JobEventOut(Schema):
    """One line of a job's history, in words."""

    id: int
    attempt: int
    event: str
    state: str
    level: str
    message: str
    at: datetime


def facts(job: Job) -> dict[str, Any]:
    """What a list says of a job."""
    runs = [run.pk for run in job.training_runs.all()] + [one.run_id for one in job.evaluations.all()]
    datasets = [version.dataset_id for version in job.dataset_versions.all()]
    base_models = [base_model.pk for base_model in job.base_models.all()]
    return {
        "id": job.pk,
        "kind": job.kind,
        "state": job.state,
        "queue": job.queue,
        "phase": job.phase or None,
        "step": job.step,
        "total_steps": job.total_steps,
        "eta_seconds": job.eta_seconds,
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
        "message": event.words,
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
    return Rows(jobs.filter(state=state) if state else jobs, facts)


@router.get("/{int:pk}", response={200: JobDetailOut, **READING})
def detail(request: Call, pk: int) -> dict[str, Any]:
    """One job, with its place in the queue."""
    job = with_subjects().fetch(request.auth, pk)
    return {**facts(job), "position": job.position()}


@router.get("/{int:pk}/events", response={200: list[JobEventOut], **READING})
@paginate(Newest)
def events(request: Call, pk: int) -> Rows:
    """What happened to it, in words."""
    return Rows(Job.objects.fetch(request.auth, pk).events.all(), event_facts)


@router.post("/{int:pk}/cancel", response={202: JobDetailOut, **WRITING})
def cancel(request: Call, pk: int) -> Status[dict[str, Any]]:
    """Stop it: at once while it waits, within seconds while it works."""
    job = Job.objects.fetch(request.auth, pk, Role.EDITOR)
    stop(request, job)
    return Status(202, detail(request, pk))


def stop(request: Call, job: Job, keep: str = "") -> None:
    """Ask the job to stop. One that has ended is refused, unless this very call has stopped it before."""
    act = f"cancel {job.pk}"
    if job.request_cancel(request.auth.user, keep):
        first_time(request, act)
        return
    if done_before(request, act):
        return
    if job.state == State.CANCELLING:
        message = _("It is being stopped already, and less of it is kept than you ask for.")
        raise Refusal(409, "already_stopping", message, "keep")
    message = _("It has already ended: %(state)s.") % {"state": job.state}
    raise Refusal(409, "already_ended", message)
