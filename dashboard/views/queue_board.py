"""What the queue page shows: each job as this caller may see it, and what they may do with it there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import groupby
from typing import Any

from django.db.models import Prefetch, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from dashboard.gate import Request
from dashboard.models import (
    DatasetVersion,
    Evaluation,
    Job,
    JudgeEvaluation,
    Outbox,
    Role,
    State,
    TrainingRun,
    WorkerNode,
)
from dashboard.models.job_state import TERMINAL
from dashboard.models.queue import QueueForecast, StartEstimate
from dashboard.models.standstill import merge_stalled, stalled_queue_of, stalled_queues
from dashboard.stages import is_stop_lossless, outcome_summary, stop_loss_text

GONE_AFTER = timedelta(hours=24)
# Of each queue; one's own jobs behind these are shown as well.
SHOWN = 50
ENDED_SHOWN = 30


@dataclass(frozen=True)
class Line:
    """A job as this caller may see it: whose it is and what it is about only in their own projects."""

    job: Job
    title: str
    url: str
    mine: bool
    may_cancel: bool
    who: str = ""
    position: int | None = None
    start: StartEstimate | None = None
    may_prioritise: bool = False
    # The jobs with which it could change places, where the caller may move it.
    before: int | None = None
    after: int | None = None
    # The same for all jobs among which it may be moved.
    group: str = ""

    @property
    def may_move(self) -> bool:
        """Whether there is another place for it."""
        return self.before is not None or self.after is not None

    @property
    def is_stop_lossless(self) -> bool:
        """Whether a stop takes nothing away but its place."""
        return is_stop_lossless(self.job)

    @property
    def stop_loss_text(self) -> str:
        """What a stop takes away, in words."""
        return stop_loss_text(self.job)

    @property
    def outcome_summary(self) -> str:
        """How its runs ended, where it had several; "" for others."""
        return outcome_summary(self.job)

    @property
    def took(self) -> timedelta | None:
        """How long its last attempt worked, once it has ended."""
        return (
            self.job.finished_at - self.job.started_at
            if self.job.finished_at and self.job.started_at
            else None
        )


@dataclass(frozen=True)
class Reader:
    """Who looks at the board, and the projects in which they may do what."""

    pk: int
    readable: set[int]
    workable: set[int]
    managed: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, request: Request) -> Reader:
        """Asked once per page."""
        user = request.user
        reads, works, manages = (
            set(user.projects(role).values_list("pk", flat=True))
            for role in (Role.VIEWER, Role.EDITOR, Role.MANAGER)
        )
        return cls(user.pk, reads, works, manages)

    def line(self, job: Job) -> Line:
        """The job in this caller's eyes. Jobs without a project belong to the installation: all may know."""
        shared = job.project_id is None
        if not shared and job.project_id not in self.readable:
            return Line(job, _("Another project's job"), "", mine=False, may_cancel=False)
        title, url = named(job)
        person = job.created_by
        return Line(
            job,
            title,
            url,
            mine=True,
            may_cancel=job.project_id in self.workable,
            who=(person.first_name or str(person)) if person else "",
            may_prioritise=job.project_id in self.managed,
        )

    def may_move(self, job: Job) -> bool:
        """Managers move every job of their project, editors their own."""
        own = job.created_by_id == self.pk and job.project_id in self.workable
        return own or job.project_id in self.managed


def line_of(request: Request, pk: int) -> Line:
    """One job in this caller's eyes."""
    return Reader.of(request).line(with_subjects(Job.objects.all()).get(pk=pk))


def board_context(request: Request) -> dict[str, Any]:
    """Everything the board shows, in a fixed number of queries."""
    reader = Reader.of(request)
    running = [reader.line(job) for job in with_subjects(Job.objects.live().order_by("started_at", "pk"))]
    queued, more = waiting_lines(reader)
    return {
        "nodes": nodes(running),
        "may_pause": WorkerNode.objects.may_be_paused_by(request.user, request.user),
        "running": running,
        "queued": queued,
        "queues": [
            {"name": name, "label": Job.Queue(name).label, "lines": list(lines), "more": more[name]}
            for name, lines in groupby(queued, key=lambda line: line.job.queue)
        ],
        "priorities": Job.Priority.choices,
        "ended": ended_lines(reader),
        **trouble(bool(queued)),
    }


def queue_position_context(job: Job | None) -> dict[str, Any]:
    """What the page of its subject tells of a job that waits: its place, its start, and why it has none."""
    position, start = QueueForecast.for_job(job).estimate_for(job)
    return {"position": position, "start": start, "stalled_queue": stalled_queue_of(job)}


def waiting_lines(reader: Reader) -> tuple[list[Line], dict[str, int]]:
    """What waits, per queue in the order of claims, and how many of each queue are not shown."""
    outlook = QueueForecast.read()
    waiting = Job.objects.filter(state__in=[State.QUEUED, State.INTERRUPTED])
    own = waiting.filter(created_by=reader.pk).values_list("pk", flat=True)[:SHOWN]
    shown = {pk for line in outlook.lines.values() for pk in line[:SHOWN]} | set(own)
    places = outlook.places
    lines = []
    for job in with_subjects(waiting.filter(Q(pk__in=shown) | Q(state=State.INTERRUPTED))):
        line = replace(reader.line(job), position=places.get(job.pk), start=outlook.starts.get(job.pk))
        lines.append(line)
    order = list(Job.Queue.values)
    lines.sort(key=lambda line: (order.index(line.job.queue), line.position or len(places) + 1))
    more = {queue: len(set(line) - shown) for queue, line in outlook.lines.items()}
    return with_neighbours(reader, lines), more


def with_neighbours(reader: Reader, lines: list[Line]) -> list[Line]:
    """Each line with the jobs before and after it with which the caller may exchange it."""
    last: dict[tuple[Any, ...], int] = {}  # of each group of jobs, the line shown last
    done = list(lines)
    for at, line in enumerate(lines):
        job = line.job
        if line.position is None or not reader.may_move(job):
            continue
        company = None if job.project_id in reader.managed else job.created_by_id
        group = (job.queue, job.project_id, job.priority, company)
        done[at] = replace(line, group="-".join(str(part) for part in group))
        if group in last:
            before = last[group]
            done[before] = replace(done[before], after=job.pk)
            done[at] = replace(done[at], before=lines[before].job.pk)
        last[group] = at
    return done


def ended_lines(reader: Reader) -> list[Line]:
    """What has ended in the last day in the caller's projects, the newest first."""
    ended = Job.objects.filter(
        Q(project=None) | Q(project__in=reader.readable),
        state__in=TERMINAL,
        finished_at__gt=timezone.now() - GONE_AFTER,
    )
    return [reader.line(job) for job in with_subjects(ended.order_by("-finished_at", "-pk"))[:ENDED_SHOWN]]


def with_subjects(jobs: QuerySet[Job]) -> QuerySet[Job]:
    """Jobs with what they are about, so that a line needs no query of its own."""
    return (
        jobs.select_related("project", "created_by")
        .defer("spec")
        .prefetch_related(
            Prefetch(
                "training_runs",
                TrainingRun.objects.select_related("study_arm__study").only(
                    "name", "job", "spec", "rung", "outcome", "error_code", "study_arm__study__name"
                ),
            ),
            Prefetch("dataset_versions", DatasetVersion.objects.select_related("dataset").defer("report")),
            "base_models",
            Prefetch("evaluations", Evaluation.objects.select_related("run__study_arm__study")),
            Prefetch("judge_evaluations", JudgeEvaluation.objects.select_related("study", "run")),
        )
    )


def named(job: Job) -> tuple[str, str]:
    """What the job is about, and where that is. A job of a study works for several arms at once."""
    subject = subject_of(job)
    if subject is None:
        return str(job), ""
    arm = subject.study_arm if isinstance(subject, TrainingRun) else None
    if arm is None:
        return str(subject), subject.get_absolute_url()
    part = _("learning rates") if subject.rung is not None else _("seed %(seed)d") % {"seed": subject.seed}
    return f"{arm.study} · {part}", arm.study.get_absolute_url()


def subject_of(job: Job) -> Any:
    """The run, study, dataset version or base model that the job works for; None when its row is gone."""
    for rows in (job.training_runs, job.dataset_versions, job.base_models):
        for row in rows.all():
            return row
    for evaluation in job.evaluations.all():
        return evaluation.run
    for judge_evaluation in job.judge_evaluations.all():
        return judge_evaluation.subject
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


def trouble(something_waits: bool) -> dict[str, Any]:
    """Which parts of the machinery are silent or held back, for the banner."""
    return {
        "unsent": Outbox.objects.overdue().exists(),
        "stalled_queues": merge_stalled(stalled_queues()),
        "no_dispatcher": not WorkerNode.objects.alive().filter(kind=WorkerNode.Kind.DISPATCHER).exists(),
        "something_waits": something_waits,
    }
