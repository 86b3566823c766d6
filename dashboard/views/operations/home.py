"""Home: the checklist until the first adapter, then what runs, what needs a person, and what came out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db import models
from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_GET

from dashboard.gate import Request
from dashboard.models import (
    Adapter,
    ComputeBudget,
    DatasetVersion,
    Evaluation,
    Job,
    Project,
    State,
    Study,
    TrainingRun,
    User,
)
from dashboard.models.jobs.compute_budget import BudgetStatus, budget_raise_hint
from dashboard.models.jobs.queue import QueueForecast
from dashboard.models.operations.stalled_queue import merge_stalled, stalled_queues
from dashboard.models.studies.results.text import verdict_sentence
from dashboard.presenters.study_grid import grid_of

SHOWN = 5
# A failure older than this no longer asks for attention; its own page keeps it.
ATTENTION = timedelta(days=14)


@require_GET
def index(request: Request) -> HttpResponse:
    """The first page after sign-in."""
    project: Project | None = request.project
    if project is None:
        return render(request, "accounts/projects/none.html")
    context = {
        "steps": steps(project),
        "results": results(project),
        "verdicts": verdicts(project),
        "attention": attention(project),
        "budget": nearly_used(project, request.user),
        **live(request),
    }
    return render(request, "operations/home/index.html", context)


@require_GET
def progress(request: Request) -> HttpResponse:
    """The live part alone."""
    return render(request, "operations/home/_running.html", live(request))


def live(request: Request) -> dict[str, Any]:
    """What runs now, what one waits for, and whether there is a worker to do it."""
    # A study's runs are shown as that study.
    runs = TrainingRun.objects.with_facts().filter(project=request.project, study_arm=None).active()[:SHOWN]
    studies = Study.objects.with_facts().filter(project=request.project).unfinished()[:SHOWN]
    own = Job.objects.filter(project=request.project, created_by=request.user, state=State.QUEUED)
    waiting = list(own.order_by("pk")[:SHOWN])
    queues = {job.queue for job in waiting}
    forecast = QueueForecast.read(queues)
    stalled = {name: queue for name, queue in stalled_queues().items() if name in queues}
    return {
        "running": runs,
        "studies": [{"study": study, "grid": grid_of(study)} for study in studies],
        "waiting": [(job, *forecast.estimate_for(job)) for job in waiting],
        "stalled_queues": merge_stalled(stalled),
    }


def steps(project: Project) -> dict[str, Any] | None:
    """How far the project is on the way to its first adapter; None once it has one."""
    if Adapter.objects.filter(project=project).exists():
        return None
    ready = DatasetVersion.objects.filter(project=project).ready().select_related("dataset").first()
    newest_run = TrainingRun.objects.filter(project=project).select_related("job").first()
    return {
        "importing": DatasetVersion.objects.filter(project=project).first(),
        "dataset": ready.dataset if ready else None,
        "run": newest_run,
    }


def nearly_used(project: Project, reader: User) -> dict[str, Any] | None:
    """How the month stands where little of its compute budget is left, and who can make more of it."""
    if ComputeBudget.objects.hours_of(project) is None:
        return None
    status = BudgetStatus.for_project(project)
    return {"status": status, "who": budget_raise_hint(project, reader)} if status.is_nearly_used else None


def attention(project: Project) -> dict[str, Any]:
    """Failures of the last days that nothing newer has settled."""
    since = timezone.now() - ATTENTION
    failed_imports = DatasetVersion.objects.filter(
        project=project, job__state=State.FAILED, created_at__gt=since
    ).exclude(dataset__versions__version__gt=models.F("version"))
    failed_runs = TrainingRun.objects.filter(project=project, created_at__gt=since).filter(
        models.Q(outcome=State.FAILED) | models.Q(outcome="", job__state=State.FAILED)
    )
    return {
        "imports": failed_imports.select_related("dataset", "job")[:SHOWN],
        "runs": failed_runs.select_related("job")[:SHOWN],
    }


def results(project: Project) -> list[dict[str, Any]]:
    """The newest adapters with what base and adapter scored on the same rows; studies have their own."""
    scored = models.Prefetch("run__evaluations", Evaluation.objects.ended())
    adapters = Adapter.objects.with_facts().filter(project=project, run__study_arm=None)
    adapters = adapters.prefetch_related(scored)[:SHOWN]
    return [{"adapter": adapter, **scores(list(adapter.run.evaluations.all()))} for adapter in adapters]


def verdicts(project: Project) -> list[dict[str, Any]]:
    """The newest finished studies with their sentences."""
    ended = Study.objects.with_facts().filter(project=project).exclude(finished_at=None)[:SHOWN]
    return [{"study": study, "sentence": verdict_sentence(study)} for study in ended]


def scores(evaluations: list[Evaluation]) -> dict[str, Any]:
    """Exact match of base and adapter from the evaluations that have ended."""
    newest = {evaluation.subject: evaluation for evaluation in evaluations}
    base, tuned = newest.get(Evaluation.Subject.BASE), newest.get(Evaluation.Subject.ADAPTER)
    if base is None or tuned is None:
        return {}
    return {
        "base": base.metrics.get("exact_match"),
        "tuned": tuned.metrics.get("exact_match"),
        "rows": tuned.rows,
    }
