"""Workers and queue: who works, what runs, what waits and in which order. Asks the database only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.db.models import Prefetch, QuerySet
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from dashboard.gate import Request
from dashboard.models import DatasetVersion, Evaluation, Job, Outbox, Role, State, TrainingRun, WorkerNode

GONE_AFTER = timedelta(hours=24)
SHOWN = 100


@dataclass(frozen=True)
class Line:
    """A job as this caller may see it: whose it is and what it is about only in their own projects."""

    job: Job
    title: str
    url: str
    mine: bool
    may_cancel: bool
    position: int | None = None


@require_GET
def index(request: Request) -> HttpResponse:
    """The page around the board."""
    return render(request, "queue/index.html", board_context(request))


@require_GET
def board(request: Request) -> HttpResponse:
    """The board alone, for live refresh."""
    return render(request, "queue/_board.html", board_context(request))


@require_POST
def cancel(request: Request, pk: int) -> HttpResponse:
    """Stop a job of a project in which the caller works."""
    job = Job.objects.fetch(request.user, pk, Role.EDITOR)
    if job.request_cancel(request.user):
        messages.success(request, _("%(job)s is being stopped.") % {"job": job})
    else:
        messages.warning(request, _("%(job)s had already ended.") % {"job": job})
    back = request.POST.get("next", "")
    # Without its slash it would be looked up as the name of a route.
    is_ours = back.startswith("/") and url_has_allowed_host_and_scheme(back, allowed_hosts=None)
    return redirect(back if is_ours else "queue-index")


def board_context(request: Request) -> dict[str, Any]:
    """Everything the board shows, in a fixed number of queries."""
    readable = set(request.user.projects().values_list("pk", flat=True))
    workable = set(request.user.projects(Role.EDITOR).values_list("pk", flat=True))
    live = list(with_subjects(Job.objects.live().order_by("started_at", "pk")))
    waiting = with_subjects(Job.objects.filter(state__in=[State.QUEUED, State.INTERRUPTED]))
    queued, places = [], {Job.Queue.GPU: 0, Job.Queue.CPU: 0}
    for job in waiting.order_by("-priority", "pk")[:SHOWN]:
        if job.state == State.QUEUED:
            places[Job.Queue(job.queue)] += 1
        position = places[Job.Queue(job.queue)] if job.state == State.QUEUED else None
        queued.append(line(job, readable, workable, position))
    running = [line(job, readable, workable) for job in live]
    return {
        "nodes": nodes(running),
        "running": running,
        "queued": queued,
        "more": max(0, waiting.count() - SHOWN),
        **trouble(bool(queued)),
    }


def with_subjects(jobs: QuerySet[Job]) -> QuerySet[Job]:
    """Jobs with what they are about, so that a line needs no query of its own."""
    return jobs.select_related("project", "created_by").prefetch_related(
        Prefetch("training_runs", TrainingRun.objects.only("name", "job")),
        Prefetch("dataset_versions", DatasetVersion.objects.select_related("dataset").defer("report")),
        "base_models",
        Prefetch("evaluations", Evaluation.objects.select_related("run")),
    )


def line(job: Job, readable: set[int], workable: set[int], position: int | None = None) -> Line:
    """The job in this caller's eyes. Jobs without a project belong to the installation: all may know."""
    shared = job.project_id is None
    if not shared and job.project_id not in readable:
        return Line(job, _("Another project's job"), "", mine=False, may_cancel=False, position=position)
    subject = subject_of(job)
    title, url = (str(subject), subject.get_absolute_url()) if subject else (str(job), "")
    return Line(job, title, url, mine=True, may_cancel=job.project_id in workable, position=position)


def subject_of(job: Job) -> Any:
    """The run, dataset version or base model that the job works for; None when its row is gone."""
    for rows in (job.training_runs, job.dataset_versions, job.base_models):
        for row in rows.all():
            return row
    for evaluation in job.evaluations.all():
        return evaluation.run
    return None


def nodes(running: list[Line]) -> list[dict[str, Any]]:
    """Workers and dispatchers heard from in the last day, with what each works on."""
    alive = set(WorkerNode.objects.alive().values_list("pk", flat=True))
    known = WorkerNode.objects.filter(heartbeat_at__gt=timezone.now() - GONE_AFTER)
    return [
        {
            "node": node,
            "alive": node.pk in alive,
            "lines": [line for line in running if line.job.worker == node.name],
        }
        for node in known
        # Nodes that said good-bye are no trouble, and would bury the ones that matter.
        if node.stopped_at is None
    ]


def trouble(something_waits: bool) -> dict[str, bool]:
    """Which parts of the machinery are silent, for the banner."""
    alive = WorkerNode.objects.alive()
    return {
        "unsent": Outbox.objects.overdue().exists(),
        "no_worker": not alive.filter(kind=WorkerNode.Kind.WORKER).exists(),
        "no_dispatcher": not alive.filter(kind=WorkerNode.Kind.DISPATCHER).exists(),
        "something_waits": something_waits,
    }
