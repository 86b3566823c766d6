"""When a waiting job starts: from what runs now, what is ahead, and how long such work took here before."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from dashboard.models import Job, Project, User, WorkerNode
from dashboard.models.queue import QueueForecast, StartEstimate, estimate_next_start

MINUTE = 60.0


@pytest.fixture
def node(db: None) -> WorkerNode:
    WorkerNode.objects.register("cpu@host", queue="cpu", host="host", pid=1)
    return WorkerNode.objects.get()


def submit(project: Project, by: User | None = None) -> Job:
    return Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=by)


def claim(worker: str = "cpu@host") -> Job:
    job = Job.objects.claim("cpu", worker=worker, slot=None, host="host", pid=1, pid_started=1.0)
    assert job
    return job


def has_taken(project: Project, *minutes: float) -> None:
    """Imports of this installation that ended well after so many minutes, long ago."""
    then = timezone.now() - timedelta(days=3)
    for taken in minutes:
        job = submit(project)
        Job.objects.filter(pk=job.pk).update(
            state="succeeded", attempt=1, started_at=then, finished_at=then + timedelta(minutes=taken)
        )


def start_of(job: Job) -> StartEstimate | None:
    return QueueForecast.read([job.queue]).starts.get(job.pk)


def minutes(start: StartEstimate | None) -> tuple[int, int, int] | None:
    return (round(start.low / 60), round(start.expected / 60), round(start.high / 60)) if start else None


def test_it_starts_at_once_where_a_worker_is_idle(project: Project, node: WorkerNode) -> None:
    start = start_of(submit(project))
    assert start is not None
    assert (start.expected, start.text) == (0, "in a moment")


def test_it_starts_after_what_runs_and_what_is_ahead(project: Project, node: WorkerNode) -> None:
    has_taken(project, *[10.0] * 6)
    submit(project), submit(project)
    last = submit(project)
    claim().update_progress(eta_seconds=5 * MINUTE)
    assert minutes(start_of(last)) == (14, 15, 16)


def test_a_wide_spread_of_earlier_times_gives_a_wide_range(project: Project, node: WorkerNode) -> None:
    has_taken(project, 2, 4, 8, 10, 20, 60)
    submit(project)
    last = submit(project)
    claim()
    start = start_of(last)
    assert minutes(start) == (4, 10, 20)
    assert start
    assert (start.text, start.range_text) == ("in about 10 min", "between 4 and 20 min")


def test_several_workers_share_what_is_ahead(project: Project, node: WorkerNode) -> None:
    has_taken(project, *[10.0] * 6)
    WorkerNode.objects.update(processes=2)
    waiting = [submit(project) for _number in range(5)]
    starts = QueueForecast.read().starts
    assert [minutes(starts[job.pk]) for job in waiting] == [(at, at, at) for at in (0, 0, 10, 10, 20)]


def test_a_job_that_outlasts_the_usual_time_is_not_over_yet(project: Project, node: WorkerNode) -> None:
    has_taken(project, *[10.0] * 6)
    submit(project)
    last = submit(project)
    job = claim()
    Job.objects.filter(pk=job.pk).update(started_at=timezone.now() - timedelta(hours=1))
    assert minutes(start_of(last)) == (1, 1, 1)


def test_it_says_nothing_where_there_is_nothing_to_go_by(project: Project, node: WorkerNode) -> None:
    submit(project)
    last = submit(project)
    claim()
    assert start_of(last) is None


@pytest.mark.parametrize("change", [{"paused_at": timezone.now()}, {"draining": True}, {"queue": "gpu"}])
def test_it_says_nothing_where_no_worker_takes_jobs(
    project: Project, node: WorkerNode, change: dict[str, object]
) -> None:
    WorkerNode.objects.update(**change)
    assert start_of(submit(project)) is None


def test_a_job_that_runs_has_no_start_to_expect(project: Project, node: WorkerNode) -> None:
    submit(project)
    assert start_of(claim()) is None


def test_it_tells_when_a_new_job_would_start(
    project: Project, node: WorkerNode, ed: User, mara: User
) -> None:
    has_taken(project, *[10.0] * 6)
    for _number in range(3):
        submit(project, ed)
    claim()
    assert minutes(estimate_next_start("cpu", project, ed)) == (30, 30, 30)
    assert minutes(estimate_next_start("cpu", project, mara)) == (10, 10, 10)


@pytest.mark.parametrize(
    ("seconds", "words", "span"),
    [
        ((0, 20, 50), "in a moment", ""),
        ((60, 60, 70), "in about 1 min", ""),
        ((600, 1300, 2400), "in about 20 min", "between 10 and 40 min"),
        ((3600, 5500, 36000), "in about 1.5 h", "between 60 min and 10 h"),
        ((3e5, 4e5, 6e5), "in about 5 days", "between 3 and 7 days"),
    ],
)
def test_it_is_said_as_roughly_as_it_is_known(
    seconds: tuple[float, float, float], words: str, span: str
) -> None:
    assert (StartEstimate(*seconds).text, StartEstimate(*seconds).range_text) == (words, span)
