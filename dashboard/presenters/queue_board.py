"""The rows of the queue page: each job as the user may see it, with the actions that are allowed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby, islice
from typing import Any

from django.db.models import Prefetch, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from dashboard.gate import Request
from dashboard.models import (
    BaseModel,
    DatasetVersion,
    Evaluation,
    Export,
    HubPush,
    Job,
    Outbox,
    Role,
    State,
    TrainingRun,
    WorkerNode,
)
from dashboard.models.jobs.job_state import LIVE, WAITING
from dashboard.models.jobs.queue_forecast import QueueForecast, StartEstimate
from dashboard.models.operations.stalled_queue import merge_stalled, stalled_queue_of, stalled_queues
from dashboard.presenters.stages import is_stop_lossless, outcome_summary, stop_loss_text

SHOWN_FOR = timedelta(hours=24)
# Waiting jobs shown per queue. The user's own jobs behind these are shown as well.
SHOWN = 20
ENDED_SHOWN = 20


@dataclass(frozen=True)
class QueueRow:
    """A job as one user may see it; owner and subject are shown only in that user's projects."""

    job: Job
    title: str
    url: str
    is_readable: bool
    may_stop: bool
    owner: str = ""
    position: int | None = None
    start: StartEstimate | None = None
    may_prioritise: bool = False

    @property
    def is_stop_lossless(self) -> bool:
        return is_stop_lossless(self.job)

    @property
    def stop_loss_text(self) -> str:
        return stop_loss_text(self.job)

    @property
    def outcome_summary(self) -> str:
        return outcome_summary(self.job)

    @property
    def duration(self) -> timedelta | None:
        """Return the duration of the last attempt of an ended job."""
        job = self.job
        return job.finished_at - job.started_at if job.finished_at and job.started_at else None


@dataclass(frozen=True)
class QueueAccess:
    """The ids of the projects in which a user may read, stop and prioritise jobs."""

    user: int
    readable: set[int]
    editable: set[int]
    managed: set[int]
    is_superuser: bool

    @classmethod
    def for_request(cls, request: Request) -> QueueAccess:
        """Read the projects once per page."""
        user, roles = request.user, request.user.roles()
        readable, editable, managed = (
            {project for project, own in roles.items() if own in role.and_above()}
            for role in (Role.VIEWER, Role.EDITOR, Role.MANAGER)
        )
        return cls(user.pk, readable, editable, managed, user.is_superuser)

    def row(self, job: Job) -> QueueRow:
        """Return the row of a job. Every user may read a job without a project."""
        if job.project_id is not None and job.project_id not in self.readable:
            return QueueRow(job, _("Another project's job"), "", is_readable=False, may_stop=False)
        title, url = title_and_url(job)
        user = job.created_by
        return QueueRow(
            job,
            title,
            url,
            is_readable=True,
            may_stop=job.project_id in self.editable or self._may_stop_shared(job),
            owner=(user.first_name or str(user)) if user else "",
            may_prioritise=job.project_id in self.managed,
        )

    def _may_stop_shared(self, job: Job) -> bool:
        """Return the answer of `Job.objects.fetch_to_stop` for a job without a project."""
        is_shared = job.project_id is None and job.kind == Job.Kind.SERVE
        return is_shared and (self.is_superuser or bool(self.editable))


def row_of(request: Request, pk: int) -> QueueRow:
    """Return the row of one job."""
    return QueueAccess.for_request(request).row(with_subjects(Job.objects.all()).get(pk=pk))


def board_context(request: Request) -> dict[str, Any]:
    """Return everything the board shows, in a fixed number of queries."""
    access = QueueAccess.for_request(request)
    forecast = QueueForecast.read()
    shown, ended = waiting_shown(access, forecast), newest_ended(access)
    # One fetch for the three lists, because what the jobs work for takes eight queries.
    wanted = Q(state__in=[*LIVE, State.INTERRUPTED]) | Q(pk__in=[*shown, *ended])
    jobs = list(with_subjects(Job.objects.filter(wanted)))
    running = [access.row(job) for job in sorted(jobs, key=start_order) if job.state in LIVE]
    waiting = waiting_rows(access, forecast, [job for job in jobs if job.state in WAITING])
    by_key = {job.pk: job for job in jobs if job.is_over}
    hidden = {queue: len(set(order) - shown) for queue, order in forecast.order.items()}
    return {
        "nodes": worker_rows(running),
        "may_pause": WorkerNode.objects.may_be_paused_by(request.user, request.user),
        "running": running,
        "waiting": waiting,
        "queues": [
            {"name": name, "label": Job.Queue(name).label, "rows": list(rows), "hidden": hidden[name]}
            for name, rows in groupby(waiting, key=lambda row: row.job.queue)
        ],
        "priorities": Job.Priority.choices,
        "ended": [access.row(by_key[pk]) for pk in ended if pk in by_key],
        **alert_context(bool(waiting)),
    }


def start_order(job: Job) -> tuple[bool, datetime | None, int]:
    """Return the key by which running jobs are listed: those that started first come first."""
    return (job.started_at is not None, job.started_at, job.pk)


def queue_position_context(job: Job | None) -> dict[str, Any]:
    """Return position, estimated start and the reason for a stall, for the page of what a job works for."""
    position, start = QueueForecast.for_job(job).estimate_for(job)
    return {"position": position, "start": start, "stalled_queue": stalled_queue_of(job)}


def waiting_shown(access: QueueAccess, forecast: QueueForecast) -> set[int]:
    """Return the waiting jobs that are shown: the first of each queue, and the user's own."""
    own = Job.objects.filter(state__in=WAITING, created_by=access.user).values_list("pk", flat=True)
    return {pk for order in forecast.order.values() for pk in order[:SHOWN]} | set(own[:SHOWN])


def waiting_rows(access: QueueAccess, forecast: QueueForecast, jobs: list[Job]) -> list[QueueRow]:
    """Return the rows of waiting jobs, per queue in the order of claims."""
    positions, starts, queues = forecast.positions, forecast.starts, list(Job.Queue.values)
    rows = [
        replace(access.row(job), position=positions.get(job.pk), start=starts.get(job.pk)) for job in jobs
    ]
    return sorted(rows, key=lambda row: (queues.index(row.job.queue), row.position or len(positions) + 1))


def newest_ended(access: QueueAccess) -> list[int]:
    """Return the jobs that ended in the last day in the user's projects, the newest first."""
    # Only ended jobs have an end; by the state, databases would read all of them.
    ended = Job.objects.filter(finished_at__gt=timezone.now() - SHOWN_FOR)
    newest = ended.order_by("-finished_at", "-pk").values_list("pk", "project")
    # Chosen here, because databases would sort all jobs of the projects.
    readable = (pk for pk, project in newest.iterator() if project is None or project in access.readable)
    return list(islice(readable, ENDED_SHOWN))


def with_subjects(jobs: QuerySet[Job]) -> QuerySet[Job]:
    """Prefetch what the jobs work for, so that a row needs no query of its own."""
    names = ("run__name", "run__spec", "run__rung", "run__reused_from", "run__study_arm__study__name")
    evaluations = Evaluation.objects.select_related("run__study_arm__study").only("job", "judge_job", *names)
    return (
        jobs.select_related("project", "created_by")
        .defer("spec")
        .prefetch_related(
            Prefetch(
                "training_runs",
                TrainingRun.objects.select_related("study_arm__study").only(
                    *("name", "job", "spec", "rung", "outcome", "error_code", "reused_from"),
                    "study_arm__study__name",
                ),
            ),
            Prefetch("dataset_versions", DatasetVersion.objects.select_related("dataset").defer("report")),
            Prefetch("base_models", BaseModel.objects.defer("census")),
            Prefetch("exports", Export.objects.select_related("adapter")),
            Prefetch("hub_pushes", HubPush.objects.select_related("adapter")),
            Prefetch("served_base_models", BaseModel.objects.defer("census")),
            Prefetch("evaluations", evaluations),
            Prefetch("judged_evaluations", evaluations),
        )
    )


def title_and_url(job: Job) -> tuple[str, str]:
    """Return the name and the page of what the job works for; of a study's job those of the study."""
    subject = subject_of(job)
    if subject is None:
        return str(job), ""
    arm = subject.study_arm if isinstance(subject, TrainingRun) else None
    if arm is None:
        return str(subject), subject.get_absolute_url()
    part = _("learning rates") if subject.rung is not None else _("seed %(seed)d") % {"seed": subject.seed}
    return f"{arm.study} · {part}", arm.study.get_absolute_url()


def subject_of(job: Job) -> Any:
    """Return the run, dataset version, base model or export of a job; None if it was deleted."""
    exported = (job.exports, job.hub_pushes)
    for rows in (job.training_runs, job.dataset_versions, job.base_models, job.served_base_models, *exported):
        for row in rows.all():
            return row
    for evaluation in (*job.evaluations.all(), *job.judged_evaluations.all()):
        return evaluation.run
    return None


def worker_rows(running: list[QueueRow]) -> list[dict[str, Any]]:
    """Return the workers and dispatchers with a heartbeat in the last day, and the running jobs of each."""
    alive = set(WorkerNode.objects.alive().values_list("pk", flat=True))
    known = WorkerNode.objects.filter(heartbeat_at__gt=timezone.now() - SHOWN_FOR)
    return [
        {
            "node": node,
            "alive": node.pk in alive,
            "rows": [row for row in running if row.job.worker == node.name],
        }
        for node in known
        # A node that shut down in order needs no attention.
        if node.stopped_at is None
    ]


def alert_context(something_waits: bool) -> dict[str, Any]:
    """Return which parts of the installation do not answer or hold jobs back, for the banner."""
    return {
        "unsent": Outbox.objects.overdue().exists(),
        "stalled_queues": merge_stalled(stalled_queues()),
        "no_dispatcher": not WorkerNode.objects.alive().filter(kind=WorkerNode.Kind.DISPATCHER).exists(),
        "something_waits": something_waits,
    }
