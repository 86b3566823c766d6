"""The rows of the queue page: each job as the user may see it, with the actions that are allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby, islice
from typing import Any

from django.db.models import Q, QuerySet
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
JOB_FIELDS = (
    *("kind", "queue", "state", "priority", "created_at", "started_at", "finished_at", "attempt", "worker"),
    *("phase", "step", "total_steps", "eta_seconds", "keep", "project__name"),
    *("created_by__first_name", "created_by__last_name", "created_by__email"),
)
RUN_FIELDS = ("name", "spec", "rung", "reused_from", "study_arm__study__name")


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
    subjects: Sequence[Any] = ()  # the rows that the job works for

    @property
    def runs(self) -> Sequence[TrainingRun]:
        """Return the runs of a training job."""
        return self.subjects if self.job.kind == Job.Kind.TRAIN else ()

    @property
    def is_stop_lossless(self) -> bool:
        return is_stop_lossless(self.job)

    @property
    def stop_loss_text(self) -> str:
        return stop_loss_text(self.job, len(self.runs))

    @property
    def outcome_summary(self) -> str:
        return outcome_summary(self.job, self.runs)

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
        user, roles = request.user, {own.project_id: Role(own.role) for own in request.memberships}
        readable, editable, managed = (
            {project for project, own in roles.items() if own in role.and_above()}
            for role in (Role.VIEWER, Role.EDITOR, Role.MANAGER)
        )
        return cls(user.pk, readable, editable, managed, user.is_superuser)

    def row(self, job: Job, subjects: Sequence[Any]) -> QueueRow:
        """Return the row of a job. Every user may read a job without a project."""
        if job.project_id is not None and job.project_id not in self.readable:
            return QueueRow(job, _("Another project's job"), "", is_readable=False, may_stop=False)
        title, url = title_and_url(job, subjects)
        user = job.created_by
        return QueueRow(
            job,
            title,
            url,
            is_readable=True,
            may_stop=job.project_id in self.editable or self._may_stop_shared(job),
            owner=(user.first_name or str(user)) if user else "",
            may_prioritise=job.project_id in self.managed,
            subjects=subjects,
        )

    def _may_stop_shared(self, job: Job) -> bool:
        """Return the answer of `Job.objects.fetch_to_stop` for a job without a project."""
        is_shared = job.project_id is None and job.kind == Job.Kind.SERVE
        return is_shared and (self.is_superuser or bool(self.editable))


def row_of(request: Request, pk: int) -> QueueRow:
    """Return the row of one job."""
    (job,) = with_people(Job.objects.filter(pk=pk))
    return QueueAccess.for_request(request).row(job, subjects_of([job]).get(pk, ()))


def board_context(request: Request) -> dict[str, Any]:
    """Return everything the board shows, in a fixed number of queries."""
    access = QueueAccess.for_request(request)
    forecast = QueueForecast.read()
    shown, ended = waiting_shown(access, forecast), newest_ended(access)
    # One fetch for the three lists.
    wanted = Q(state__in=[*LIVE, State.INTERRUPTED]) | Q(pk__in=[*shown, *ended])
    jobs = with_people(Job.objects.filter(wanted))
    subjects = subjects_of(jobs)
    rows = {job.pk: access.row(job, subjects.get(job.pk, ())) for job in jobs}
    running = [rows[job.pk] for job in sorted(jobs, key=start_order) if job.state in LIVE]
    waiting = waiting_rows(forecast, [rows[job.pk] for job in jobs if job.state in WAITING])
    nodes = list(WorkerNode.objects.heard_since(SHOWN_FOR))
    hidden = {queue: len(set(order) - shown) for queue, order in forecast.order.items()}
    return {
        "nodes": worker_rows(running, nodes),
        "may_pause": WorkerNode.objects.may_be_paused_by(request.user, request.user),
        "running": running,
        "waiting": waiting,
        "queues": [
            {"name": name, "label": Job.Queue(name).label, "rows": list(group), "hidden": hidden[name]}
            for name, group in groupby(waiting, key=lambda row: row.job.queue)
        ],
        "ended": [rows[pk] for pk in ended if pk in rows and rows[pk].job.is_over],
        **alert_context(nodes, something_waits=bool(waiting)),
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


def waiting_rows(forecast: QueueForecast, rows: list[QueueRow]) -> list[QueueRow]:
    """Return the rows of waiting jobs with their positions, per queue in the order of claims."""
    positions, starts, queues = forecast.positions, forecast.starts, list(Job.Queue.values)
    placed = [replace(row, position=positions.get(row.job.pk), start=starts.get(row.job.pk)) for row in rows]
    return sorted(placed, key=lambda row: (queues.index(row.job.queue), row.position or len(positions) + 1))


def newest_ended(access: QueueAccess) -> list[int]:
    """Return the jobs that ended in the last day in the user's projects, the newest first."""
    # Only ended jobs have an end; by the state, databases would read all of them.
    ended = Job.objects.filter(finished_at__gt=timezone.now() - SHOWN_FOR)
    newest = ended.order_by("-finished_at", "-pk").values_list("pk", "project")
    # Chosen here, because databases would sort all jobs of the projects.
    readable = (pk for pk, project in newest.iterator() if project is None or project in access.readable)
    return list(islice(readable, ENDED_SHOWN))


def with_people(jobs: QuerySet[Job]) -> list[Job]:
    """Return jobs with what a row shows of them, of their project and of their owner."""
    return list(jobs.select_related("project", "created_by").only(*JOB_FIELDS))


def subjects_of(jobs: Iterable[Job]) -> dict[int, list[Any]]:
    """Return job -> the rows that it works for, in a query per kind of job."""
    of_kind: dict[str, list[int]] = {}
    for job in jobs:
        of_kind.setdefault(job.kind, []).append(job.pk)
    found: dict[int, list[Any]] = {}
    for kind, keys in of_kind.items():
        rows, field = rows_for(Job.Kind(kind))
        for row in rows.filter(**{f"{field}__in": keys}):
            found.setdefault(getattr(row, f"{field}_id"), []).append(row)
    return found


def rows_for(kind: Job.Kind) -> tuple[QuerySet[Any], str]:
    """Return the rows that jobs of a kind work for, and their field for the job."""
    if kind == Job.Kind.TRAIN:
        facts = ("job", "outcome", "error_code", *RUN_FIELDS)
        return TrainingRun.objects.select_related("study_arm__study").only(*facts), "job"
    if kind in (Job.Kind.EVALUATE, Job.Kind.JUDGE):
        evaluations = Evaluation.objects.select_related("run__study_arm__study")
        evaluations = evaluations.only("job", "judge_job", *(f"run__{field}" for field in RUN_FIELDS))
        return evaluations, "job" if kind == Job.Kind.EVALUATE else "judge_job"
    if kind == Job.Kind.IMPORT:
        versions = DatasetVersion.objects.select_related("dataset")
        return versions.only("job", "version", "dataset__name"), "job"
    if kind in (Job.Kind.INSPECT, Job.Kind.SERVE):
        return BaseModel.objects.defer("census"), "job" if kind == Job.Kind.INSPECT else "serving_job"
    rows: Any = Export.objects if kind == Job.Kind.EXPORT else HubPush.objects
    return rows.select_related("adapter"), "job"


def title_and_url(job: Job, subjects: Sequence[Any]) -> tuple[str, str]:
    """Return the name and the page of what the job works for; of a study's job those of the study."""
    # It may have been deleted.
    subject = next(iter(subjects), None)
    if isinstance(subject, Evaluation):
        subject = subject.run
    if subject is None:
        return str(job), ""
    arm = subject.study_arm if isinstance(subject, TrainingRun) else None
    if arm is None:
        return str(subject), subject.get_absolute_url()
    part = _("learning rates") if subject.rung is not None else _("seed %(seed)d") % {"seed": subject.seed}
    return f"{arm.study} · {part}", arm.study.get_absolute_url()


def worker_rows(running: list[QueueRow], nodes: list[WorkerNode]) -> list[dict[str, Any]]:
    """Return the workers and dispatchers, and the running jobs of each."""
    return [
        {
            "node": node,
            "alive": node.is_alive,  # type: ignore[attr-defined]
            "rows": [row for row in running if row.job.worker == node.name],
        }
        for node in nodes
        # A node that shut down in order needs no attention.
        if node.stopped_at is None
    ]


def alert_context(nodes: list[WorkerNode], *, something_waits: bool) -> dict[str, Any]:
    """Return which parts of the installation do not answer or hold jobs back, for the banner."""
    alive = [node for node in nodes if node.is_alive]  # type: ignore[attr-defined]
    return {
        "unsent": Outbox.objects.overdue().exists(),
        "stalled_queues": merge_stalled(stalled_queues(alive)),
        "no_dispatcher": not any(node.kind == WorkerNode.Kind.DISPATCHER for node in alive),
        "something_waits": something_waits,
    }
