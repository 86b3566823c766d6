"""The rows of the queue page: each job as the user may see it, with the actions that are allowed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby, islice
from typing import Any

from django.db.models import Prefetch, Q, QuerySet, prefetch_related_objects
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
# The attribute of a job that holds what it works for, by its kind.
SUBJECTS = {
    Job.Kind.IMPORT: "dataset_versions",
    Job.Kind.INSPECT: "base_models",
    Job.Kind.TRAIN: "training_runs",
    Job.Kind.EVALUATE: "evaluations",
    Job.Kind.JUDGE: "judged_evaluations",
    Job.Kind.SERVE: "served_base_models",
    Job.Kind.EXPORT: "exports",
    Job.Kind.PUSH: "hub_pushes",
}


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
    def kind_label(self) -> str:
        """Return the label of the job's kind; Django's own reads all kinds for each row."""
        return str(Job.Kind(self.job.kind).label)

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
        user, roles = request.user, {own.project_id: Role(own.role) for own in request.memberships}
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
    (job,) = with_subjects(Job.objects.filter(pk=pk))
    return QueueAccess.for_request(request).row(job)


def board_context(request: Request) -> dict[str, Any]:
    """Return everything the board shows, in a fixed number of queries."""
    access = QueueAccess.for_request(request)
    forecast = QueueForecast.read()
    shown, ended = waiting_shown(access, forecast), newest_ended(access)
    # One fetch for the three lists, because what the jobs work for takes a query per kind.
    wanted = Q(state__in=[*LIVE, State.INTERRUPTED]) | Q(pk__in=[*shown, *ended])
    jobs = with_subjects(Job.objects.filter(wanted))
    running = [access.row(job) for job in sorted(jobs, key=start_order) if job.state in LIVE]
    waiting = waiting_rows(access, forecast, [job for job in jobs if job.state in WAITING])
    by_key = {job.pk: job for job in jobs if job.is_over}
    nodes = list(WorkerNode.objects.heard_since(SHOWN_FOR))
    hidden = {queue: len(set(order) - shown) for queue, order in forecast.order.items()}
    return {
        "nodes": worker_rows(running, nodes),
        "may_pause": WorkerNode.objects.may_be_paused_by(request.user, request.user),
        "running": running,
        "waiting": waiting,
        "queues": [
            {"name": name, "label": Job.Queue(name).label, "rows": list(rows), "hidden": hidden[name]}
            for name, rows in groupby(waiting, key=lambda row: row.job.queue)
        ],
        "priorities": Job.Priority.choices,
        "ended": [access.row(by_key[pk]) for pk in ended if pk in by_key],
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


def with_subjects(jobs: QuerySet[Job]) -> list[Job]:
    """Return jobs with what they work for, so that a row needs no query of its own."""
    found = list(jobs.select_related("project", "created_by").defer("spec"))
    of_kind: dict[str, list[Job]] = {}
    for job in found:
        of_kind.setdefault(job.kind, []).append(job)
    for kind, alike in of_kind.items():
        prefetch_related_objects(alike, subjects(Job.Kind(kind)))
    return found


def subjects(kind: Job.Kind) -> Prefetch[str]:
    """Return the prefetch of what jobs of a kind work for, named after the attribute of the job."""
    if kind == Job.Kind.TRAIN:
        runs = TrainingRun.objects.select_related("study_arm__study")
        facts = ("name", "job", "spec", "rung", "outcome", "error_code", "reused_from")
        return Prefetch("training_runs", runs.only(*facts, "study_arm__study__name"))
    if kind in (Job.Kind.EVALUATE, Job.Kind.JUDGE):
        evaluations = Evaluation.objects.select_related("run__study_arm__study")
        names = ("name", "spec", "rung", "reused_from", "study_arm__study__name")
        evaluations = evaluations.only("job", "judge_job", *(f"run__{name}" for name in names))
        return Prefetch(SUBJECTS[kind], evaluations)
    if kind == Job.Kind.IMPORT:
        versions = DatasetVersion.objects.select_related("dataset").only("job", "version", "dataset__name")
        return Prefetch(SUBJECTS[kind], versions)
    if kind in (Job.Kind.INSPECT, Job.Kind.SERVE):
        return Prefetch(SUBJECTS[kind], BaseModel.objects.defer("census"))
    rows = Export.objects if kind == Job.Kind.EXPORT else HubPush.objects
    return Prefetch(SUBJECTS[kind], rows.select_related("adapter"))


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
    row = next(iter(getattr(job, SUBJECTS[Job.Kind(job.kind)]).all()), None)
    return row.run if isinstance(row, Evaluation) else row


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
