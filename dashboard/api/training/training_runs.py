"""Training runs: launch, list, stop, resume; their curves, evaluations, samples, events and log."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, cast

from django.core.exceptions import ValidationError as DjangoError
from django.db import transaction
from django.db.models import Model, Prefetch, prefetch_related_objects
from ninja import Query, Router, Status

from dashboard.api.access import Call, do_once, once
from dashboard.api.catalog.base_models import require_inspected
from dashboard.api.catalog.target_module_configs import chosen_base_model
from dashboard.api.choices import HyperparametersIn, config_of, newest_version
from dashboard.api.evaluations.evaluations import submit_reevaluation
from dashboard.api.jobs import jobs
from dashboard.api.pagination import Newest, Rows, listing
from dashboard.api.refusals import READING, WRITING, Nothing, Refusal, invalid, refuse_others
from dashboard.api.training.curves import require_known
from dashboard.api.training.run_list import SortedRuns, listed
from dashboard.api.training.schemas import (
    CancelIn,
    EvaluationOut,
    LogOut,
    MetricSeriesOut,
    MetricsOut,
    RunIn,
    RunNotesIn,
    RunOut,
    SampleOut,
)
from dashboard.forms.training.run_notes import clean_tag_names
from dashboard.models import (
    Adapter,
    DatasetVersion,
    Evaluation,
    EvaluationItem,
    IllegalMove,
    Job,
    JobEvent,
    MetricSeries,
    Role,
    State,
    Tag,
    TrainingRun,
)
from dashboard.models.evaluations import forgetting
from dashboard.models.evaluations.evaluation import base_evaluation
from dashboard.models.evaluations.run_score import RunScore
from dashboard.models.jobs.stop import StopRefused, stop_run
from dashboard.models.training.forecast import RunForecaster

router = Router()
LOG_LINES = 1000
# What an answer reads of the rows that a run refers to.
READ: dict[str, tuple[type[Model], tuple[str, ...]]] = {
    "job": (Job, ("state", "phase", "step", "error_code", "error_message", "keep")),
    "dataset_version": (DatasetVersion, ("dataset", "splits")),
    "validation_version": (DatasetVersion, ("dataset",)),
    "adapter": (Adapter, ("run", "name", "version")),
}


class RelatedRows:
    """Tags and scores of runs, read once for all of them and without a model row for each."""

    def __init__(self, runs: Sequence[TrainingRun]) -> None:
        self.tags: defaultdict[int, list[str]] = defaultdict(list)
        self.scores: defaultdict[int, dict[str, dict[str, float | None]]] = defaultdict(dict)
        keys = [run.pk for run in runs]
        named = TrainingRun.tags.through.objects.filter(trainingrun__in=keys).order_by("tag__name")
        for run, name in named.values_list("trainingrun_id", "tag__name"):
            self.tags[run].append(name)
        scores = RunScore.objects.filter(run__in=keys).values_list("run_id", "metric", "base", "value")
        for run, metric, base, adapter in scores:
            self.scores[run][metric] = {"base": base, "adapter": adapter}
        # A run that goes on has the step of its last training loss.
        losses = MetricSeries.objects.filter(name="train/loss").only("run", "name", "last_step")
        prefetch_related_objects(
            [run for run in runs if run.ended_step is None], Prefetch("metric_series", losses)
        )


def serialize_run(run: TrainingRun) -> dict[str, Any]:
    """Return the JSON object of a run."""
    return run_entry(run, RelatedRows([run]), jobs.expected_starts())


def run_entry(
    run: TrainingRun, related: RelatedRows, starts_at: Callable[[Job | None], datetime | None]
) -> dict[str, Any]:
    return {
        "id": run.pk,
        "name": run.name,
        "reused_from": run.reused_from_id,
        "state": run.state,
        "dataset": run.dataset_version.dataset_id,
        "validation_dataset": run.validation_version.dataset_id if run.validation_version else None,
        "base_model": run.base_model_id,
        "target_module_config": run.target_module_config_id,
        "hyperparameters": run.hyperparameters,
        "starts_at": starts_at(None if run.outcome else run.job),
        "step": run.step,
        "total_steps": run.total_steps,
        "forecast": run.forecast or None,
        "adapter": adapter_of(run),
        "error": run.error,
        "resumable_from": run.resumable_from,
        "adjustments": run.adjustments,
        "origin": run.origin,
        "tags": related.tags[run.pk],
        "note": run.note,
        "scores": related.scores[run.pk],
    }


def adapter_of(run: TrainingRun) -> dict[str, Any] | None:
    """Return the reference to its adapter, or None."""
    try:
        return {"id": run.adapter.pk, "name": run.adapter.name, "version": run.adapter.version}
    except Adapter.DoesNotExist:
        return None


def serialize_evaluation(evaluation: Evaluation, base: Evaluation | None) -> dict[str, Any]:
    """Return the JSON object of an evaluation; `base` is the base model's, for an adapter's forgetting."""
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
    """Return runs with the columns that `run_entry` reads."""
    runs = TrainingRun.objects.select_related("job", "dataset_version", "validation_version", "adapter")
    unread = [
        f"{relation}__{field.name}"
        for relation, (model, read) in READ.items()
        for field in model._meta.concrete_fields
        if not field.primary_key and field.name not in read
    ]
    return runs.defer("metadata", "confirmations", *unread)


@router.get("", response={200: list[RunOut], **READING})
@listing(SortedRuns)
def index(request: Call) -> Rows:
    """List the project's runs, the newest first unless `sort` says otherwise. Filters narrow the list."""
    starts_at = jobs.expected_starts()
    related: list[RelatedRows] = []
    return listed(
        request,
        with_facts(),
        convert=lambda run: run_entry(run, related[0], starts_at),
        fetch=lambda page: related.append(RelatedRows(page)),
    )


@router.get("/{int:pk}", response={200: RunOut, **READING})
def detail(request: Call, pk: int) -> dict[str, Any]:
    """Return one run."""
    return serialize_run(with_facts().fetch(request.auth, pk))


@router.patch("/{int:pk}", response={200: RunOut, **WRITING}, url_name="training-run-detail")
def annotate(request: Call, pk: int, payload: RunNotesIn) -> dict[str, Any]:
    """Replace the tags or the note of a run; what is left out stays."""
    run = TrainingRun.objects.fetch(request.auth, pk, Role.EDITOR)
    with transaction.atomic():
        if payload.tags is not None:
            try:
                names = clean_tag_names(payload.tags)
            except DjangoError as error:
                raise invalid("tags", error.messages[0]) from error
            Tag.objects.set_all(run, names)
        if payload.note is not None:
            TrainingRun.objects.filter(pk=pk).update(note=payload.note)
    return detail(request, pk)


@router.post("", response={200: RunOut, 202: RunOut, **WRITING})
def create(request: Call, payload: RunIn) -> Status[dict[str, Any]]:
    """Queue a fine-tune and return at once. With `reuse`, 200 and an equal run that has finished, if any.

    409 `over_budget`: the project's compute budget of this month is too small; the message states the rest.
    """
    if payload.reuse:
        equal_run = TrainingRun.objects.finished_equal(draft(request, payload, confirmed=payload.confirmed))
        if equal_run:
            return Status(200, detail(request, equal_run.pk))
    job = once(request, Job.Kind.TRAIN, lambda key: launch(request, payload, key))
    return Status(202, serialize_run(with_facts().get(job=job)))


def launch(request: Call, payload: RunIn, key: str) -> Job:
    """Launch the run and return its job."""
    run = draft(request, payload, confirmed=payload.confirmed)
    run.launch(key)
    return cast("Job", run.job)


def draft(request: Call, payload: RunIn, *, confirmed: bool) -> TrainingRun:
    """Return the unsaved run of a request. Every id is looked up among what the caller may see."""
    version, validation = newest_version(request, payload.dataset), None
    if payload.validation_dataset is not None:
        validation = newest_version(request, payload.validation_dataset, "validation_dataset")
    base_model = require_inspected(chosen_base_model(request, payload.base_model))
    config = config_of(request, payload.target_module_config)
    run = TrainingRun(
        project=request.auth.project,
        created_by=request.auth.user,
        name=payload.name,
        dataset_version=version,
        validation_version=validation,
        base_model=base_model,
        target_module_config=config,
    )
    chosen = (payload.hyperparameters or HyperparametersIn()).chosen()
    learn = chosen.resolve(RunForecaster.load(base_model, version, validation), [config])
    run.freeze(learn, confirmed=confirmed)
    return run


@router.post("/{int:pk}/cancel", response={202: RunOut, **WRITING})
def cancel(request: Call, pk: int, payload: CancelIn | None = None) -> Status[dict[str, Any]]:
    """Stop a run: at once while it waits, within seconds while it trains. With `keep` `adapter` it saves its
    best weights so far and ends as `stopped_early`; before the first step there is nothing to keep.

    Runs that train in the same job, as those of a study do, are all stopped with it, and `keep` holds for
    each of them.
    """
    run = TrainingRun.objects.select_related("job").fetch(request.auth, pk, Role.EDITOR)
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
    """Resume a failed or stopped run from its checkpoint.

    A finished study of the run continues too, and gets a new verdict. 409 `over_budget`: the project's
    compute budget of this month is too small for the rest of the run or of its study.
    """
    run = TrainingRun.objects.select_related("job").fetch(request.auth, pk, Role.EDITOR)
    try:
        do_once(request, f"resume {pk}", lambda: run.resume(request.auth.user))
    except IllegalMove as refusal:
        raise Refusal(409, "not_resumable", str(refusal)) from refusal
    return Status(202, detail(request, pk))


@router.post("/{int:pk}/score", response={202: RunOut, **WRITING})
def score(request: Call, pk: int, payload: Nothing | None = None) -> Status[dict[str, Any]]:
    """Re-evaluate the run's adapter after its evaluation failed or was stopped.

    409 `not_scorable`: the run has scores, or its evaluation is queued or running. 409 `over_budget`: the
    project's compute budget of this month is too small.
    """
    submit_reevaluation(request, TrainingRun.objects.fetch(request.auth, pk, Role.EDITOR))
    return Status(202, detail(request, pk))


@router.get("/{int:pk}/metrics", response={200: MetricsOut, **READING})
def metrics(
    request: Call, pk: int, name: str, since: Annotated[int, Query(ge=-1, le=2**31 - 1)] = -1
) -> dict[str, Any]:
    """Return one curve, or its points after step `since`. `train/loss` has a point for each step."""
    refuse_others(list(request.GET), ["name", "since"])
    run = TrainingRun.objects.fetch(request.auth, pk)
    # The database may refuse unprintable characters, and no curve's name has any.
    series = run.metric_series.filter(name=name).first() if name.isprintable() else None
    if series is None:
        require_known(name)
    points = series.points(since) if series else []
    return {"name": name, "points": [(step, finite(value)) for step, value in points]}


@router.get("/{int:pk}/metric-series", response={200: list[MetricSeriesOut], **READING})
@listing(Newest)
def metric_series(request: Call, pk: int) -> Rows:
    """List the curves with their last, lowest and highest value."""
    rows = TrainingRun.objects.fetch(request.auth, pk).metric_series.all()
    return Rows(rows, lambda series: {key: getattr(series, key) for key in MetricSeriesOut.model_fields})


@router.get("/{int:pk}/evaluations", response={200: list[EvaluationOut], **READING})
@listing(Newest)
def evaluations(request: Call, pk: int) -> Rows:
    """List the evaluations of base model and adapter on the same test rows."""
    run = TrainingRun.objects.with_scores().fetch(request.auth, pk)
    base = base_evaluation(run)
    return Rows(
        Evaluation.objects.of_run(run).select_related("job"),
        lambda evaluation: serialize_evaluation(evaluation, base),
    )


@router.get("/{int:pk}/samples", response={200: list[SampleOut], **READING})
@listing(Newest)
def samples(request: Call, pk: int) -> Rows:
    """List test rows with the expected answer, the base model's and the adapter's."""
    run = TrainingRun.objects.fetch(request.auth, pk)
    pairs = {adapter.pk: base for base, adapter in EvaluationItem.objects.pairs(run)}
    return Rows(
        EvaluationItem.objects.filter(pk__in=list(pairs)), lambda item: serialize_pair(pairs[item.pk], item)
    )


def serialize_pair(base: EvaluationItem, adapter: EvaluationItem) -> dict[str, Any]:
    """Return the JSON object of a test row with both answers."""
    return {
        "row": adapter.row,
        "system": adapter.system or "",
        "prompt": adapter.prompt,
        "expected": adapter.expected,
        "base": base.output,
        "adapter": adapter.output,
        "base_scores": base.scores,
        "adapter_scores": adapter.scores,
    }


@router.get("/{int:pk}/events", response={200: list[jobs.JobEventOut], **READING})
@listing(Newest)
def events(request: Call, pk: int) -> Rows:
    """List the events of the run's job."""
    run = TrainingRun.objects.fetch(request.auth, pk)
    return Rows(JobEvent.objects.filter(job=run.job_id), jobs.serialize_event)


@router.get("/{int:pk}/log", response={200: LogOut, **READING})
def log(request: Call, pk: int, lines: Annotated[int, Query(ge=1, le=LOG_LINES)] = 200) -> dict[str, str]:
    """Return the last lines of the run's log."""
    refuse_others(list(request.GET), ["lines"])
    job = TrainingRun.objects.select_related("job").fetch(request.auth, pk).job
    return {"text": job.log_tail(lines) if job else ""}


def finite(value: float) -> float | None:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return value if math.isfinite(value) else None
