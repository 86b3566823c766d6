"""Training runs: page, live region, stop and resume. `run_list` lists them, `fine_tune` launches them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import prefetch_related_objects
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from dashboard.charts import curves, forgetting_charts
from dashboard.forms.training.hyperparameters import differences, format_value
from dashboard.forms.training.run_notes import RunNotesForm
from dashboard.gate import Request
from dashboard.models import (
    EvaluationItem,
    IllegalMove,
    Job,
    JobEvent,
    MetricSeries,
    OverBudget,
    Role,
    State,
    TrainingRun,
    WorkerNode,
)
from dashboard.models.evaluations import forgetting
from dashboard.models.evaluations.evaluation import adapter_evaluation
from dashboard.models.jobs.queue_forecast import QueueForecast
from dashboard.models.jobs.stop import StopRefused, may_have_progress, stop_run
from dashboard.models.operations.stalled_queue import stalled_queue_of
from dashboard.presenters.forecast_accuracy import compare_forecast
from dashboard.presenters.stages import PHASES, announcement, eta_range, stages, stopping_text
from dashboard.views.evaluations.evaluations import unscored_run_notice
from dashboard.views.jobs.endings import ending_context
from workers.contract.hyperparameters import SETTINGS, Hyperparameters

SAMPLES_PER_PAGE = 10
EVENTS_SHOWN = 200
SAMPLE_GROUPS = {
    "all": gettext_lazy("All"),
    "changed": gettext_lazy("Changed by the adapter"),
    "wrong": gettext_lazy("Adapter wrong"),
}


# A run's page


@require_GET
def detail(request: Request, pk: int) -> HttpResponse:
    """Show a run: its progress, or its result or failure when it is over."""
    runs = TrainingRun.objects.with_facts().with_scores().prefetch_related("metric_series", "tags")
    run = runs.defer("job__spec", "adapter__files").fetch(request.user, pk)
    series = {one.name: one for one in run.metric_series.all() if one.name in curves.CURVES}
    prefetch_related_objects(list(series.values()), "chunks")
    context = {
        **progress_context(run),
        **samples_context(request, run),
        "may_edit": request.user.has_role(Role.EDITOR, run.project_id),
        "tags": run.tags.all(),
        "notes_form": RunNotesForm(
            initial={"tags": ", ".join(tag.name for tag in run.tags.all()), "note": run.note}
        ),
        "score_rows": curves.score_rows(run),
        "forgetting": forgetting_charts.table({str(run): forgetting.run_forgetting(run)}),
        "settings": settings_of(run),
        "learn": Hyperparameters(**run.hyperparameters),
        "log": run.job.log_tail() if run.job else "",
        "table": curve_table(series),
        "finding": curves.loss_summary(series.get("train/loss")),
        "look": curves.colours([run.pk])[run.pk],
        "compared": compare_forecast(run),
        "unscored": unscored_run_notice(run),
        **ending_context(run),
        **stop_context(run),
    }
    return render(request, "training/detail.html", context)


@require_GET
def progress(request: Request, pk: int) -> HttpResponse:
    """Render the live region."""
    run = TrainingRun.objects.with_facts().with_scores().fetch(request.user, pk)
    return render(request, "training/_progress.html", progress_context(run))


@require_http_methods(["GET", "POST"])
def cancel(request: Request, pk: int) -> HttpResponse:
    """Ask what to keep of a run, and stop its job with all its runs."""
    run = TrainingRun.objects.with_facts().fetch(request.user, pk, Role.EDITOR)
    keep = request.POST.get("keep", "")
    if request.method == "GET" or keep not in Job.Keep.values:
        return stop_question(request, run, status=200 if request.method == "GET" else 422)
    try:
        stop_run(run, request.user, keep, seen_waiting=request.POST.get("seen") == "waiting")
    except StopRefused as refusal:
        if refusal.code == "has_begun":
            return stop_question(request, run, why=str(refusal), status=422)
        messages.warning(request, str(refusal))
    return redirect(run)


def stop_question(request: Request, run: TrainingRun, *, status: int, why: str = "") -> HttpResponse:
    """Show the choices that there are now; `why`: the reason if the question is repeated."""
    context = {"run": run, "why": why, **stop_context(run)}
    return render(request, "training/cancel.html", context, status=status)


@require_POST
def resume(request: Request, pk: int) -> HttpResponse:
    """Resume a run from its checkpoint, or show the reason if that is not possible."""
    run = TrainingRun.objects.select_related("job").fetch(request.user, pk, Role.EDITOR)
    try:
        run.resume(request.user)
    except (IllegalMove, OverBudget) as refusal:
        messages.warning(request, str(refusal))
    return redirect(run)


def stop_context(run: TrainingRun) -> dict[str, Any]:
    """Return what the confirmation before a stop shows."""
    if run.is_over or run.job is None or run.state == State.CANCELLING:
        return {"can_stop": False}
    can_keep = may_have_progress(run.job)
    return {
        "can_stop": True,
        "can_keep": can_keep,
        # Search runs publish no adapter.
        "can_keep_best": can_keep and run.rung is None and run.job.keep != Job.Keep.ADAPTER,
        "other_runs": run.job.training_runs.filter(outcome="").exclude(pk=run.pk).count(),
        "kept_days": settings.KEEP_CHECKPOINTS_DAYS,
    }


@require_GET
def log(request: Request, pk: int) -> HttpResponse:
    """Return the end of the run's log as plain text."""
    run = TrainingRun.objects.select_related("job").fetch(request.user, pk)
    text = run.job.log_tail() if run.job else ""
    return HttpResponse(text, content_type="text/plain; charset=utf-8")


@require_GET
def samples(request: Request, pk: int) -> HttpResponse:
    """Render one page of answers of base model and adapter."""
    run = TrainingRun.objects.with_scores().fetch(request.user, pk)
    return render(request, "training/_samples.html", samples_context(request, run))


def progress_context(run: TrainingRun) -> dict[str, Any]:
    """Return the context of the live region."""
    scoring = adapter_evaluation(run)
    evaluation = scoring.job if scoring else None
    working = working_for(run, evaluation)
    stopping = stopping_text(run)
    steps = stages(run, evaluation)
    jobs = [job.pk for job in (run.job, evaluation) if job]
    events = JobEvent.objects.filter(job__in=jobs).order_by("-created_at", "-pk")[:EVENTS_SHOWN]
    device = WorkerNode.objects.device_of(run.job.worker) if run.job else ""
    position, start = QueueForecast.for_job(working).estimate_for(working)
    waits = bool(working and working.state == State.QUEUED)
    no_4bit = waits and run.in_4bit and not WorkerNode.objects.supporting_4bit().exists()
    return {
        "run": run,
        "working": working,
        "evaluation": evaluation,
        "phase": PHASES.get(working.phase, working.phase) if working else "",
        "stages": steps,
        "announcement": announcement(steps, working),
        "position": position,
        "start": None if no_4bit else start,
        "stopping": stopping,
        "stalled_queue": stalled_queue_of(working),
        "no_4bit": no_4bit,
        "eta": eta_range(run if working and working == run.job else working),
        "events": events,
        "shares_job": shares_job(run),
        "latest": {series.name.replace("/", "_"): series for series in run.metric_series.all()},
        "device": device or run.measured.get("device", ""),
    }


def shares_job(run: TrainingRun) -> bool:
    """Return whether the events tell of other runs that train in the same job."""
    if run.job is None or run.job.is_over:
        return False
    return run.is_over or run.job.training_runs.exclude(pk=run.pk).exists()


def working_for(run: TrainingRun, evaluation: Job | None) -> Job | None:
    """Return the job whose progress the run shows; None when run and evaluation are over."""
    if not run.is_over:
        return run.job
    return evaluation if evaluation and not evaluation.is_over else None


def samples_context(request: Request, run: TrainingRun) -> dict[str, Any]:
    """Return the context of the pairs of answers; ?samples= filters, ?page= pages."""
    facts = EvaluationItem.objects.pair_facts(run)
    rows = {
        "all": [row for row, _differs, _is_right in facts],
        "changed": [row for row, differs, _is_right in facts if differs],
        "wrong": [row for row, _differs, is_right in facts if not is_right],
    }
    chosen = request.GET.get("samples", "all")
    chosen = chosen if chosen in rows else "all"
    page = Paginator(rows[chosen], SAMPLES_PER_PAGE).get_page(request.GET.get("page"))
    groups = [(name, label, len(rows[name])) for name, label in SAMPLE_GROUPS.items()]
    pairs = EvaluationItem.objects.pairs(run, list(page)) if facts else []
    return {"run": run, "page": page, "pairs": pairs, "chosen": chosen, "groups": groups}


def settings_of(run: TrainingRun) -> list[dict[str, Any]]:
    """Return every setting with its value, and its default if that differs."""
    learn = Hyperparameters(**run.hyperparameters)
    changed = {name: default for name, _value, default in differences(learn, run.base_model)}
    return [
        {
            "name": name,
            "label": SETTINGS[name].label,
            "value": format_value(value, name),
            "default": changed.get(name),
        }
        for name, value in run.hyperparameters.items()
        if value is not None
    ]


def curve_table(stored: Mapping[str, MetricSeries]) -> list[tuple[int, list[float | None]]]:
    """Return the chart as a table."""
    return curves.table({name: stored[name].points() if name in stored else [] for name in curves.CURVES})
