"""Home: the checklist until the first adapter, then the month (for managers), running work and results."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from django.db import models
from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_GET

from dashboard.charts import best_scores
from dashboard.gate import Request
from dashboard.models import (
    Adapter,
    ComputeBudget,
    DatasetVersion,
    Decision,
    Evaluation,
    Job,
    JobEvent,
    Project,
    Role,
    State,
    Study,
    TrainingRun,
    User,
)
from dashboard.models.jobs.compute_budget import BudgetStatus, budget_raise_hint
from dashboard.models.jobs.queue_forecast import QueueForecast
from dashboard.models.operations.stalled_queue import merge_stalled, stalled_queues
from dashboard.presenters.month_overview import FAILURE_FIELDS, MonthOverview
from dashboard.presenters.study_grid import grid_of
from dashboard.views.kept_parts import KeptParts

ROWS = 5
MONTH_SECONDS = 10
# Home lists newer failures only.
FAILURE_AGE = timedelta(days=14)


@require_GET
def index(request: Request) -> HttpResponse:
    """Show the first page after sign-in."""
    project: Project | None = request.project
    if project is None:
        return render(request, "accounts/projects/none.html")
    checklist = steps(project)
    context = {
        "steps": checklist,
        "results": results(project),
        "attention": recent_failures(project),
        **running_work(request),
    }
    status = None
    if checklist is None and is_manager(request):
        parts = month_parts(request, project)
        # The month names the verdicts by dataset.
        context["month_part"] = parts.part("operations/home/_month.html", lambda month: month)
        context["has_charts"] = parts.once("charts", lambda month: bool(month["charts"]))
        status = parts.once("budget", lambda month: month["month"].budget)
    else:
        context["verdicts"] = verdicts(project)
    context["budget"] = nearly_used_budget(project, request.user, status)
    return render(request, "operations/home/index.html", context)


def is_manager(request: Request) -> bool:
    """Return whether the user manages the current project."""
    return any(own.project == request.project and own.role == Role.MANAGER for own in request.memberships)


def month_parts(request: Request, project: Project) -> KeptParts[dict[str, Any]]:
    """Return the month at a glance, which managers see first, as it was at most MONTH_SECONDS ago.

    What happens to jobs, decisions and the budget is shown at once.
    """
    events, decisions = JobEvent.objects.all(), Decision.objects.filter(project=project)
    newest = [rows.order_by("-pk").values_list("pk", flat=True).first() for rows in (events, decisions)]
    stamp = [project.pk, *newest, ComputeBudget.objects.hours_of(project), time.time() // MONTH_SECONDS]
    return KeptParts(request, f"month {stamp}", lambda: month_context(project))


def month_context(project: Project) -> dict[str, Any]:
    """Return what the month shows."""
    month = MonthOverview.of(project, BudgetStatus.for_project(project))
    rows = best_scores.best_scores(project)
    return {
        "month": month,
        "best_scores": rows,
        "charts": best_scores.charts(rows),
        "chart_finding": best_scores.finding(rows, month.month.begin),
    }


@require_GET
def progress(request: Request) -> HttpResponse:
    """Render the live region."""
    return render(request, "operations/home/_running.html", running_work(request))


def running_work(request: Request) -> dict[str, Any]:
    """Return running runs and studies, the user's waiting jobs, and their stalled queues."""
    # A study's runs are shown as that study. Running ones come first, then those that have waited longest.
    names = ("name", "outcome", "reused_from", "dataset_version__version", "dataset_version__dataset__name")
    jobs = ("state", "kind", "step", "total_steps", "eta_seconds", "keep", "phase")
    runs = TrainingRun.objects.select_related("job", "dataset_version__dataset", "target_module_config")
    runs = runs.only(*names, "target_module_config__name", *(f"job__{field}" for field in jobs))
    runs = runs.filter(project=request.project, study_arm=None).active()
    is_waiting = models.Case(models.When(job__state=State.QUEUED, then=1), default=0)
    runs = runs.order_by(is_waiting, "pk")[:ROWS]
    open_studies = Study.objects.filter(project=request.project).unfinished().values_list("pk", flat=True)
    # Mostly there is none, and what a study shows takes many joins.
    keys = list(open_studies[:ROWS])
    studies = list(Study.objects.with_facts().filter(pk__in=keys)) if keys else []
    own = Job.objects.filter(project=request.project, created_by=request.user, state=State.QUEUED)
    # In no order: by number, databases would read all jobs of the project.
    waiting = dict(own.order_by().values_list("pk", "queue"))
    queues = set(waiting.values())
    starts = QueueForecast.read(queues).starts
    known_starts = [starts[pk] for pk in waiting if pk in starts]
    stalled = {name: queue for name, queue in stalled_queues().items() if name in queues}
    return {
        "running": runs,
        "studies": [{"study": study, "grid": grid_of(study)} for study in studies],
        "waiting": len(waiting),
        "next_start": min(known_starts, key=lambda start: start.seconds, default=None),
        "stalled_queues": merge_stalled(stalled),
    }


def steps(project: Project) -> dict[str, Any] | None:
    """Return the state of the checklist; None once the project has an adapter."""
    if Adapter.objects.filter(project=project).exists():
        return None
    ready = DatasetVersion.objects.filter(project=project).ready().select_related("dataset").first()
    newest_run = TrainingRun.objects.filter(project=project).select_related("job").first()
    return {
        "importing": DatasetVersion.objects.filter(project=project).first(),
        "dataset": ready.dataset if ready else None,
        "run": newest_run,
    }


def nearly_used_budget(
    project: Project, reader: User, status: BudgetStatus | None = None
) -> dict[str, Any] | None:
    """Return the compute budget of the month if little of it is left, and who can raise it."""
    if status is None and ComputeBudget.objects.hours_of(project) is None:
        return None
    status = status or BudgetStatus.for_project(project)
    return {"status": status, "who": budget_raise_hint(project, reader)} if status.is_nearly_used else None


def recent_failures(project: Project) -> dict[str, Any]:
    """Return failed imports without a newer version, and failed runs."""
    since = timezone.now() - FAILURE_AGE
    failed_imports = DatasetVersion.objects.filter(
        project=project, job__state=State.FAILED, created_at__gt=since
    ).exclude(dataset__versions__version__gt=models.F("version"))
    # A job that fails gives its outcome to its runs.
    failed_runs = TrainingRun.objects.filter(project=project, created_at__gt=since, outcome="failed")
    # By time as well as number: the index is in the order of time.
    failed_runs = failed_runs.order_by("-created_at", "-pk")
    return {
        "imports": failed_imports.select_related("dataset", "job").only(
            "version", "created_at", "dataset__name", "job__error_message"
        )[:ROWS],
        "runs": failed_runs.select_related("job").only(*FAILURE_FIELDS, "created_at")[:ROWS],
    }


def results(project: Project) -> list[dict[str, Any]]:
    """Return the newest adapters outside of studies, with the scores of base model and adapter."""
    # The state is asked below: databases would start from all jobs that have succeeded.
    scored = Evaluation.objects.exclude(adapter=None).select_related("job", "base_evaluation__job")
    facts = ("run", "adapter", "rows", "metrics", "job__state")
    scored = scored.only(*facts, "base_evaluation__metrics", "base_evaluation__job__state")
    adapters = Adapter.objects.select_related("run").filter(project=project, run__study_arm=None)
    adapters = adapters.only("name", "version", "size_bytes", "created_at", "run__name")
    adapters = adapters.prefetch_related(models.Prefetch("run__evaluations", scored))[:ROWS]
    return [{"adapter": adapter, **scores(list(adapter.run.evaluations.all()))} for adapter in adapters]


def verdicts(project: Project) -> list[dict[str, Any]]:
    """Return the newest finished studies with their verdict sentences."""
    ended = Study.objects.filter(project=project).exclude(finished_at=None).order_by("-finished_at")
    ended = ended.only("name", "finished_at", "stored_summary")[:ROWS]
    return [{"study": study, "sentence": study.summary["verdict"]} for study in ended]


def scores(evaluations: list[Evaluation]) -> dict[str, Any]:
    """Return the exact match of base model and adapter, or nothing unless both are evaluated."""
    ended = [one for one in evaluations if one.state == State.SUCCEEDED]
    tuned = max(ended, key=lambda one: one.pk, default=None)
    base = tuned.base_evaluation if tuned else None
    if tuned is None or base is None or base.state != State.SUCCEEDED:
        return {}
    return {
        "base": base.metrics.get("exact_match"),
        "tuned": tuned.metrics.get("exact_match"),
        "rows": tuned.rows,
    }
