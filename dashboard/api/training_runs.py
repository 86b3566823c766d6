"""Training runs: start, list, look, stop; their curves, evaluations, samples, events and log."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal, cast

from django.utils.translation import gettext as _
from ninja import Query, Router, Schema, Status
from ninja.pagination import paginate
from pydantic import (
    ConfigDict,
    StrictBool,
    StrictInt,
)

from dashboard.api import jobs
from dashboard.api.access import Call, do_once, once
from dashboard.api.base_models import inspected
from dashboard.api.choices import HyperparametersIn, IdOrSlug, config_of, newest_version
from dashboard.api.evaluations import submit_reevaluation
from dashboard.api.failures import Failure
from dashboard.api.forgetting import ForgettingOut
from dashboard.api.paging import Newest, Rows
from dashboard.api.refusals import READING, WRITING, Nothing, Refusal, invalid, refuse_others
from dashboard.api.target_module_configs import chosen_base_model
from dashboard.api.texts import Name
from dashboard.models import (
    Adapter,
    Evaluation,
    EvaluationItem,
    IllegalMove,
    Job,
    JobEvent,
    Role,
    State,
    TrainingRun,
    forgetting,
)
from dashboard.models.forecast import forecast_run
from dashboard.models.stopping import StopRefused, stop_run
from workers.hyperparameters import hyperparameters_from

router = Router()
# Curves that a run may have; before their first point they are empty.
METRICS = (
    "train/loss",
    "train/learning_rate",
    "train/grad_norm",
    "train/tokens_per_second",
    "validation/loss",
    "system/memory_bytes",
)
LOG_LINES = 1000


class RunIn(Schema):
    """A run to start: ids, or a preset's slug. The newest imported version of the dataset is used.

    `confirmed`: whether what the choice of target modules leaves out, or reaches besides, is accepted. Only a
    choice with such gaps needs it; the refusal names them, and the list of choices has them as `confirm`.
    """

    model_config = ConfigDict(extra="forbid")

    name: Name = ""
    dataset: StrictInt
    base_model: StrictInt | None = None
    target_module_config: IdOrSlug
    hyperparameters: HyperparametersIn | None = None
    confirmed: StrictBool = False


class CancelIn(Schema):
    """What stays of the run: `adapter` the best so far, `checkpoint` what resuming needs; else nothing."""

    model_config = ConfigDict(extra="forbid")

    keep: Literal["adapter", "checkpoint"] | None = None


class Range(Schema):
    """A number that is not known exactly: nine of ten runs should lie between `low` and `high`."""

    expected: float
    low: float
    high: float


class BytesRange(Schema):
    """The same for bytes."""

    expected: int
    low: int
    high: int


class Forecast(Schema):
    """Estimated before the start, for the quickest device on which the run fits.

    `rows_cut`: about how many training rows have an answer that `max_length` cuts; null where that is not
    known. `starts_at`: when it would probably begin; null where there is nothing to go by.
    """

    trainable_parameters: int
    adapter_bytes: int
    peak_memory_bytes: BytesRange | None = None
    seconds: Range | None = None
    rows_cut: int | None = None
    starts_at: datetime | None = None


class AdapterRef(Schema):
    """The adapter that a run has made."""

    id: int
    name: str
    version: int


class RunOut(Schema):
    """A run. `hyperparameters` are resolved: nothing in them is left open. `resumable_from`: the step from
    which it could be resumed, or null. `adjustments`: what was changed after memory ran out. `starts_at`:
    when a waiting run probably starts; null when it does not wait or there is nothing to go by. `origin`: all
    that made it what it is, from hashes and versions to the device; null for what is not known yet."""

    id: int
    name: str
    state: str
    dataset: int
    base_model: int
    target_module_config: int
    hyperparameters: dict[str, Any]
    starts_at: datetime | None
    step: int
    total_steps: int
    forecast: Forecast
    adapter: AdapterRef | None
    error: Failure | None
    resumable_from: int | None
    adjustments: list[dict[str, Any]]
    origin: dict[str, Any]


class MetricsOut(Schema):
    """One curve: [step, value] in rising order."""

    name: str
    points: list[tuple[int, float | None]]


class MetricSeriesOut(Schema):
    """What is known of a curve without reading its points."""

    name: str
    count: int
    last_step: int
    last: float | None
    low: float | None
    high: float | None


class EvaluationOut(Schema):
    """Base model or adapter, scored on held-out rows.

    `general_questions`: version and SHA-256 of the questions that were asked besides, how many answers each
    has, and a mark of 0 or 1 for each; null where they were not asked. Their mean is `general_accuracy` among
    the metrics. `forgetting` is what an adapter changed against the base model outside of the data.
    """

    id: int
    subject: str
    split: str
    rows: int | None
    state: str
    metrics: dict[str, Any]
    general_questions: dict[str, Any] | None
    forgetting: ForgettingOut | None
    error: Failure | None


class SampleOut(Schema):
    """A held-out row: what was asked and expected, and what base model and adapter answered."""

    row: int
    prompt: str
    expected: str
    base: str
    adapter: str
    base_scores: dict[str, Any]
    adapter_scores: dict[str, Any]


class LogOut(Schema):
    """The end of the log of the run's job."""

    text: str


def shown(
    run: TrainingRun, starts_at: Callable[[Job | None], datetime | None] | None = None
) -> dict[str, Any]:
    """The object as every answer has it; a list asks for all starts at once."""
    return {
        "id": run.pk,
        "name": run.name,
        "state": run.state,
        "dataset": run.dataset_version.dataset_id,
        "base_model": run.base_model_id,
        "target_module_config": run.target_module_config_id,
        "hyperparameters": run.hyperparameters,
        "starts_at": (starts_at or jobs.expected_starts())(None if run.outcome else run.job),
        "step": run.step,
        "total_steps": run.total_steps,
        "forecast": run.forecast,
        "adapter": adapter_of(run),
        "error": run.error,
        "resumable_from": run.resumable_from,
        "adjustments": run.adjustments,
        "origin": run.origin,
    }


def adapter_of(run: TrainingRun) -> dict[str, Any] | None:
    """The adapter it has made, or None."""
    try:
        return {"id": run.adapter.pk, "name": run.adapter.name, "version": run.adapter.version}
    except Adapter.DoesNotExist:
        return None


def evaluation_shown(evaluation: Evaluation, base: Evaluation | None) -> dict[str, Any]:
    """The object as the list has it; an adapter's is read beside the base model's."""
    tuned = evaluation.subject == Evaluation.Subject.ADAPTER and evaluation.state == State.SUCCEEDED
    return {
        "id": evaluation.pk,
        "subject": evaluation.subject,
        "split": evaluation.split,
        "rows": evaluation.rows,
        "state": evaluation.state,
        "metrics": evaluation.metrics,
        "general_questions": evaluation.general_questions or None,
        "forgetting": forgetting.Forgetting(base, [evaluation]).facts() if tuned else None,
        "error": evaluation.error,
    }


def with_facts() -> Any:
    """Runs with everything that `shown` needs, in a fixed number of queries."""
    return TrainingRun.objects.with_facts().prefetch_related("metric_series")


@router.get("", response={200: list[RunOut], **READING})
@paginate(Newest)
def index(request: Call) -> Rows:
    """The project's runs."""
    starts_at = jobs.expected_starts()
    return Rows(with_facts().visible_to(request.auth), lambda run: shown(run, starts_at))


@router.get("/{int:pk}", response={200: RunOut, **READING})
def detail(request: Call, pk: int) -> dict[str, Any]:
    """One run."""
    return shown(with_facts().fetch(request.auth, pk))


@router.post("", response={202: RunOut, **WRITING})
def create(request: Call, payload: RunIn) -> Status[dict[str, Any]]:
    """Queue a fine-tune; it needs no broker and returns at once.

    409 `over_budget`: the project's month has no room for it; the message says what is left.
    """
    job = once(request, Job.Kind.TRAIN, lambda key: launch(request, payload, key))
    return Status(202, shown(with_facts().get(job=job)))


def launch(request: Call, payload: RunIn, key: str) -> Job:
    """Launch the run and return its job."""
    run = draft(request, payload, confirmed=payload.confirmed)
    run.forecast = forecast_run(run)
    run.launch(key)
    return cast("Job", run.job)


def draft(request: Call, payload: RunIn, *, confirmed: bool) -> TrainingRun:
    """Return the unsaved run of a request. Every id is looked up among what the caller may see."""
    version = newest_version(request, payload.dataset)
    base_model = inspected(chosen_base_model(request, payload.base_model))
    config = config_of(request, payload.target_module_config)
    run = TrainingRun(
        project=request.auth.project,
        created_by=request.auth.user,
        name=payload.name or TrainingRun.default_name(version, config),
        dataset_version=version,
        base_model=base_model,
        target_module_config=config,
    )
    values = payload.hyperparameters.dict() if payload.hyperparameters else {}
    run.freeze(hyperparameters_from(values), confirmed=confirmed)
    return run


@router.post("/{int:pk}/cancel", response={202: RunOut, **WRITING})
def cancel(request: Call, pk: int, payload: CancelIn | None = None) -> Status[dict[str, Any]]:
    """Stop a run: at once while it waits, within seconds while it trains. With `keep` `adapter` it saves its
    best weights so far and ends as `stopped_early`; before the first step there is nothing to keep.

    Runs that train in the same job, as those of a study do, are all stopped with it, and `keep` holds for
    each of them.
    """
    run = with_facts().fetch(request.auth, pk, Role.EDITOR)
    do_once(request, f"cancel run {pk}", lambda: stop(request, run, (payload and payload.keep) or ""))
    return Status(202, detail(request, pk))


def stop(request: Call, run: TrainingRun, keep: str) -> None:
    """Stop the job of the run, or refuse with the reason."""
    try:
        stop_run(run, request.auth.user, keep)
    except StopRefused as refusal:
        raise Refusal(409, refusal.code, str(refusal), refusal.field) from refusal


@router.post("/{int:pk}/resume", response={202: RunOut, **WRITING})
def resume(request: Call, pk: int, payload: Nothing | None = None) -> Status[dict[str, Any]]:
    """Continue a run that failed, or was stopped with its checkpoint kept, where the checkpoint left it.

    A study that had ended goes on with it, and is judged anew. 409 `over_budget`: the project's month has no
    room for what is left of it, or for what its study then trains.
    """
    run = with_facts().fetch(request.auth, pk, Role.EDITOR)
    try:
        do_once(request, f"resume {pk}", lambda: run.resume(request.auth.user))
    except IllegalMove as refusal:
        raise Refusal(409, "not_resumable", str(refusal)) from refusal
    return Status(202, detail(request, pk))


@router.post("/{int:pk}/score", response={202: RunOut, **WRITING})
def score(request: Call, pk: int, payload: Nothing | None = None) -> Status[dict[str, Any]]:
    """Score its adapter again where that failed or was stopped, in a study as the study does.

    409 `not_scorable`: it has its scores, or they are to come; 409 `over_budget`: the month has no room.
    """
    submit_reevaluation(request, TrainingRun.objects.fetch(request.auth, pk, Role.EDITOR))
    return Status(202, detail(request, pk))


@router.get("/{int:pk}/metrics", response={200: MetricsOut, **READING})
def metrics(
    request: Call, pk: int, name: str, since: Annotated[int, Query(ge=-1, le=2**31 - 1)] = -1
) -> dict[str, Any]:
    """One curve, or its points after step `since`. `train/loss` has a point for each step."""
    refuse_others(list(request.GET), ["name", "since"])
    run = TrainingRun.objects.fetch(request.auth, pk)
    # No curve's name holds what cannot be printed, and the database may be unable to look for it.
    series = run.metric_series.filter(name=name).first() if name.isprintable() else None
    if series is None and name not in METRICS:
        message = _("There is no metric of that name. Known: %(names)s.")
        raise invalid("name", message % {"names": ", ".join(METRICS)})
    points = series.points(since) if series else []
    return {"name": name, "points": [(step, finite(value)) for step, value in points]}


@router.get("/{int:pk}/metric-series", response={200: list[MetricSeriesOut], **READING})
@paginate(Newest)
def metric_series(request: Call, pk: int) -> Rows:
    """Which curves there are, with their last, lowest and highest value."""
    rows = TrainingRun.objects.fetch(request.auth, pk).metric_series.all()
    return Rows(rows, lambda one: {key: getattr(one, key) for key in MetricSeriesOut.model_fields})


@router.get("/{int:pk}/evaluations", response={200: list[EvaluationOut], **READING})
@paginate(Newest)
def evaluations(request: Call, pk: int) -> Rows:
    """How base model and adapter did on the same held-out rows."""
    run = TrainingRun.objects.with_scores().fetch(request.auth, pk)
    base = forgetting.base_evaluation(run)
    return Rows(run.evaluations.select_related("job"), lambda one: evaluation_shown(one, base))


@router.get("/{int:pk}/samples", response={200: list[SampleOut], **READING})
@paginate(Newest)
def samples(request: Call, pk: int) -> Rows:
    """Held-out rows side by side: expected, base model, adapter."""
    run = TrainingRun.objects.fetch(request.auth, pk)
    pairs = {adapter.pk: base for base, adapter in EvaluationItem.objects.pairs(run)}
    return Rows(
        EvaluationItem.objects.filter(pk__in=list(pairs)), lambda item: pair_shown(pairs[item.pk], item)
    )


def pair_shown(base: EvaluationItem, adapter: EvaluationItem) -> dict[str, Any]:
    """Two answers to one row."""
    return {
        "row": adapter.row,
        "prompt": adapter.prompt,
        "expected": adapter.expected,
        "base": base.output,
        "adapter": adapter.output,
        "base_scores": base.scores,
        "adapter_scores": adapter.scores,
    }


@router.get("/{int:pk}/events", response={200: list[jobs.JobEventOut], **READING})
@paginate(Newest)
def events(request: Call, pk: int) -> Rows:
    """What happened to it, in words."""
    run = TrainingRun.objects.fetch(request.auth, pk)
    return Rows(JobEvent.objects.filter(job=run.job_id), jobs.serialize_event)


@router.get("/{int:pk}/log", response={200: LogOut, **READING})
def log(request: Call, pk: int, lines: Annotated[int, Query(ge=1, le=LOG_LINES)] = 200) -> dict[str, str]:
    """The last lines of its log, for looking into a failure."""
    refuse_others(list(request.GET), ["lines"])
    job = TrainingRun.objects.select_related("job").fetch(request.auth, pk).job
    return {"text": job.log_tail(lines) if job else ""}


def finite(value: float) -> float | None:
    """JSON has no word for what is not a number."""
    return value if math.isfinite(value) else None
