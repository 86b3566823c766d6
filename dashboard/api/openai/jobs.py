"""Fine-tuning jobs: a job is a training run. Create, list, read, cancel, pause, resume."""

from __future__ import annotations

from typing import Any, cast

from django.utils import timezone
from django.utils.translation import gettext as _
from ninja import Router

from dashboard.api.access import Call
from dashboard.api.choices import config_of
from dashboard.api.openai.files import fetch_upload, result_ids, upload_id
from dashboard.api.openai.hyperparameters import JobIn, renamed, resolved
from dashboard.api.openai.lists import (
    DEFAULT_LIMIT,
    After,
    Limit,
    listing,
    missing,
    number_in,
    seconds,
    wrong_after,
)
from dashboard.api.openai.models import find
from dashboard.api.openai.retries import is_retry, start_once
from dashboard.api.refusals import Nothing, Refusal, invalid, refuse_others
from dashboard.models import Adapter, BaseModel, DatasetVersion, IllegalMove, Job, Role, State, TrainingRun
from dashboard.models.accounts.project import parse_id
from dashboard.models.jobs.stop import StopRefused, stop_run
from dashboard.models.training.automatic import ChosenSettings
from dashboard.models.training.forecast import RunForecaster
from workers.contract.errors import SpecError

router = Router()
PREFIX = "ftjob-"
IMPORT_SECONDS = "10"
STATUS = {
    "draft": "queued",
    State.QUEUED: "queued",
    State.INTERRUPTED: "queued",
    State.SUCCEEDED: "succeeded",
    TrainingRun.Outcome.STOPPED_EARLY: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}
# Phases of a training before its first step, in which it reads the rows.
READING_PHASES = ("tokenizing",)


def visible(request: Call) -> Any:
    """Return the project's runs with everything that `serialize_job` reads; not those that reuse another."""
    runs = TrainingRun.objects.with_facts().select_related("adapter__base_model", "adapter__project")
    return runs.prefetch_related("metric_series").filter(reused_from=None).visible_to(request.auth)


def fetch(request: Call, job: str, role: Role = Role.VIEWER) -> TrainingRun:
    """Return the run of a job's id, if the caller has the role in its project."""
    run = visible(request).filter(pk=number_in(job, PREFIX, None, _("job"))).first()
    if run is None:
        raise missing(None, _("job"))
    run.project.require(request.auth, role)
    return cast("TrainingRun", run)


def adapter_of(run: TrainingRun) -> Adapter | None:
    """Return the adapter of a run, or None."""
    try:
        return run.adapter
    except Adapter.DoesNotExist:
        return None


def status_of(run: TrainingRun) -> str:
    """Return the state in OpenAI's six words."""
    phase = run.job.phase if run.job else ""
    live = "validating_files" if phase in READING_PHASES else "running"
    return STATUS.get(run.state, live)


def serialize_job(run: TrainingRun) -> dict[str, Any]:
    """Return the job object. Its hyperparameters are the numbers that were used, never "auto"."""
    adapter, values, status = adapter_of(run), resolved(run), status_of(run)
    is_open = not run.is_over
    error = run.error
    return {
        "id": f"{PREFIX}{run.pk}",
        "object": "fine_tuning.job",
        "created_at": seconds(run.created_at),
        "error": {**error, "param": None} if error else None,
        "fine_tuned_model": adapter.openai_name if adapter else None,
        "finished_at": seconds(run.job.finished_at) if run.is_over and run.job else None,
        "hyperparameters": values,
        "model": run.base_model.hub_id,
        "organization_id": run.project.slug,
        "result_files": result_ids(run) if adapter else [],
        "seed": run.seed,
        "status": status,
        "trained_tokens": run.measured.get("tokens"),
        "training_file": upload_id(run.dataset_version),
        "validation_file": upload_id(run.validation_version) if run.validation_version else None,
        "estimated_finish": int(timezone.now().timestamp() + run.seconds_left) if is_open else None,
        "integrations": None,
        "metadata": run.metadata,
        "method": {"type": "supervised", "supervised": {"hyperparameters": values}},
    }


@router.post("")
def create(request: Call, payload: JobIn) -> dict[str, Any]:
    """Queue a fine-tune. Without a validation file, the validation rows are taken from the training file."""
    job = start_once(request, Job.Kind.TRAIN, lambda key: launch(request, payload, key))
    return serialize_job(visible(request).get(job=job))


def launch(request: Call, payload: JobIn, key: str) -> Job:
    """Launch the run of a request and return its job."""
    payload.refuse_unsupported()
    base_model = find(request, payload.model)
    if not isinstance(base_model, BaseModel):
        raise invalid("model", _("A fine-tuned model cannot be trained further. Choose a base model."))
    version, validation = imported(request, payload.training_file, "training_file"), None
    if payload.validation_file is not None:
        validation = imported(request, payload.validation_file, "validation_file")
    chosen = payload.chosen(base_model)
    config = config_of(request, chosen.preset)
    run = TrainingRun(
        project=request.auth.project,
        created_by=request.auth.user,
        name=payload.suffix or "",
        dataset_version=version,
        validation_version=validation,
        base_model=base_model,
        target_module_config=config,
        metadata=payload.metadata or {},
    )
    try:
        settings = ChosenSettings.of(chosen.values)
        learn = settings.resolve(RunForecaster.load(base_model, version, validation), [config])
        run.freeze(learn, confirmed=chosen.confirmed)
        run.launch(key)
    except SpecError as error:
        raise renamed(error, chosen.place) from error
    if payload.integrations:
        text = _("The integrations of this job are not stored: Graftworks sends nothing to other services.")
        cast("Job", run.job).record("message", State.QUEUED, State.QUEUED, text=text, level="warn")
    return cast("Job", run.job)


def imported(request: Call, file: str, field: str) -> DatasetVersion:
    """Return the rows of a file, or refuse one that is not processed.

    OpenAI's clients ask again by themselves while it is waiting.
    """
    version = fetch_upload(request, file, field)
    if version.is_ready:
        return version
    if version.job and version.job.is_over:
        error = version.job.error
        message = error["message"] if error else _("The import of this file was stopped.")
        raise invalid(field, message)
    message = _("This file is still being processed. Wait until its status is `processed`.")
    headers = {"Retry-After": IMPORT_SECONDS, "x-should-retry": "true"}
    raise Refusal(400, "file_not_processed", message, field, headers)


@router.get("")
def index(request: Call, limit: Limit = DEFAULT_LIMIT, after: After = "") -> dict[str, Any]:
    """List the jobs, newest first; `metadata[key]=value` keeps those with that pair."""
    wanted = {name[9:-1]: request.GET[name] for name in request.GET if name.startswith("metadata[")}
    refuse_others(list(request.GET), ["limit", "after", "metadata", *(f"metadata[{key}]" for key in wanted)])
    runs = TrainingRun.objects.filter(reused_from=None).visible_to(request.auth).order_by("-pk")
    if request.GET.get("metadata", "null") != "null":
        raise invalid("metadata", _("`metadata` must be null, or pairs such as metadata[team]=support."))
    if "metadata" in request.GET:
        runs = runs.filter(metadata={})
    if after:
        last = parse_id(after.removeprefix(PREFIX))
        if last is None or not after.startswith(PREFIX):
            raise wrong_after()
        runs = runs.filter(pk__lt=last)
    if wanted:
        # Compared here: keys that look like numbers or paths mean something else to a database.
        pairs = runs.exclude(metadata={}).values_list("pk", "metadata")
        found = [pk for pk, metadata in pairs if wanted.items() <= metadata.items()]
        runs = runs.filter(pk__in=found[: limit + 1])
    page = visible(request).filter(pk__in=list(runs.values_list("pk", flat=True)[: limit + 1]))
    return listing((serialize_job(run) for run in page.order_by("-pk")), limit)


@router.get("/{str:job}")
def detail(request: Call, job: str) -> dict[str, Any]:
    """Return one job."""
    return serialize_job(fetch(request, job))


@router.post("/{str:job}/cancel")
def cancel(request: Call, job: str, payload: Nothing | None = None) -> dict[str, Any]:
    """Stop a job and discard its progress."""
    return stop(request, job, Job.Keep.NOTHING)


@router.post("/{str:job}/pause")
def pause(request: Call, job: str, payload: Nothing | None = None) -> dict[str, Any]:
    """Stop a job and keep its checkpoint, so that it can be resumed. Its status is then `cancelled`."""
    return stop(request, job, Job.Keep.CHECKPOINT)


def stop(request: Call, job: str, keep: str) -> dict[str, Any]:
    """Stop a job that is not stopped already, or refuse with the reason."""
    run = fetch(request, job, Role.EDITOR)
    try:
        if run.state not in (State.CANCELLED, State.CANCELLING) or keep == Job.Keep.NOTHING:
            stop_run(run, request.auth.user, keep)
    except StopRefused as refusal:
        run = fetch(request, job)
        if run.state not in (State.CANCELLED, State.CANCELLING):
            raise Refusal(409, refusal.code, str(refusal)) from refusal
    return serialize_job(fetch(request, job))


@router.post("/{str:job}/resume")
def resume(request: Call, job: str, payload: Nothing | None = None) -> dict[str, Any]:
    """Continue a paused or failed job from its checkpoint."""
    run = fetch(request, job, Role.EDITOR)
    try:
        if not (is_retry(request) and not run.is_over):
            run.resume(request.auth.user)
    except IllegalMove as refusal:
        raise Refusal(409, "not_resumable", str(refusal)) from refusal
    return serialize_job(fetch(request, job))
