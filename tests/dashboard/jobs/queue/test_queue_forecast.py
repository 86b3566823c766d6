"""The estimated start of a waiting job: the remaining time of what is ahead, divided by the workers."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from dashboard.models import Job, Project, TrainingRun, User, WorkerNode
from dashboard.models.jobs.queue_forecast import (
    QueueForecast,
    StartEstimate,
    estimate_next_start,
)

MINUTE = 60.0


@pytest.fixture
def node(db: None) -> WorkerNode:
    WorkerNode.objects.register("cpu@host", queue="cpu", host="host", pid=1)
    return WorkerNode.objects.get()


def submit(project: Project) -> Job:
    return Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None)


def claim(worker: str = "cpu@host") -> Job:
    job = Job.objects.claim("cpu", worker=worker, slot=None, host="host", pid=1, pid_started=1.0)
    assert job
    return job


def add_durations(project: Project, *minutes: float) -> None:
    """Add imports that took so many minutes, some days ago."""
    then = timezone.now() - timedelta(days=3)
    for duration in minutes:
        job = submit(project)
        Job.objects.filter(pk=job.pk).update(
            state="succeeded", attempt=1, started_at=then, finished_at=then + timedelta(minutes=duration)
        )


def starts_in(job: Job) -> int | None:
    """Minutes until the estimated start."""
    start = QueueForecast.read([job.queue]).starts.get(job.pk)
    return round(start.seconds / 60) if start else None


def test_a_job_starts_at_once_on_an_idle_worker(project: Project, node: WorkerNode) -> None:
    assert starts_in(submit(project)) == 0


def test_running_and_earlier_jobs_are_ahead(project: Project, node: WorkerNode) -> None:
    add_durations(project, 2, 10, 60)
    submit(project), submit(project)
    last = submit(project)
    claim().update_progress(eta_seconds=5 * MINUTE)
    assert starts_in(last) == 15


def test_the_order_follows_a_new_priority(project: Project, node: WorkerNode, mara: User) -> None:
    add_durations(project, 10)
    submit(project), submit(project)
    last = submit(project)
    assert starts_in(last) == 20
    last.set_priority(Job.Priority.HIGH, mara)
    assert starts_in(last) == 0


def test_the_order_follows_a_start_of_the_project(
    project: Project, other_project: Project, node: WorkerNode
) -> None:
    first, other = submit(project), submit(other_project)
    assert QueueForecast.read(["cpu"]).positions == {first.pk: 1, other.pk: 2}
    Job.objects.filter(pk=submit(project).pk).update(
        state="succeeded", **dict.fromkeys(("started_at", "finished_at"), timezone.now())
    )
    assert QueueForecast.read(["cpu"]).positions == {other.pk: 1, first.pk: 2}


def test_waiting_jobs_are_read_once_per_change(project: Project, node: WorkerNode) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            QueueForecast.read(["cpu"])
        return len(captured)

    submit(project)
    first = queries()
    assert queries() == first - 1
    added = submit(project)
    assert queries() == first
    assert added.pk in QueueForecast.read(["cpu"]).order["cpu"]


def test_the_workers_share_what_is_ahead(project: Project, node: WorkerNode) -> None:
    add_durations(project, 10)
    WorkerNode.objects.update(processes=2)
    assert [starts_in(submit(project)) for _number in range(5)] == [0, 0, 10, 15, 20]


def test_a_training_is_expected_to_take_its_forecast(run: TrainingRun, project: Project) -> None:
    WorkerNode.objects.register("gpu@host", queue="gpu", host="host", pid=1)
    TrainingRun.objects.update(forecast={"seconds": {"expected": 20 * MINUTE}})
    start = estimate_next_start("gpu", project)
    assert start is not None
    assert start.seconds == 20 * MINUTE


def test_scores_are_expected_before_the_waiting_training_of_their_project(
    run: TrainingRun, project: Project
) -> None:
    WorkerNode.objects.register("gpu@host", queue="gpu", host="host", pid=1)
    TrainingRun.objects.update(forecast={"seconds": {"expected": 20 * MINUTE}})
    scores = Job.objects.submit(Job.Kind.EVALUATE, {}, project=project, by=None)
    assert (starts_in(scores), starts_in(run.job)) == (0, None)


def test_an_overdue_job_still_takes_a_tenth_of_its_time(project: Project, node: WorkerNode) -> None:
    add_durations(project, 10)
    submit(project)
    last = submit(project)
    job = claim()
    Job.objects.filter(pk=job.pk).update(started_at=timezone.now() - timedelta(hours=1))
    assert starts_in(last) == 1


def test_without_an_earlier_duration_the_start_is_unknown(project: Project, node: WorkerNode) -> None:
    submit(project)
    last = submit(project)
    claim()
    assert starts_in(last) is None


@pytest.mark.parametrize("change", [{"paused_at": timezone.now()}, {"draining": True}, {"queue": "gpu"}])
def test_without_a_worker_the_start_is_unknown(
    project: Project, node: WorkerNode, change: dict[str, object]
) -> None:
    WorkerNode.objects.update(**change)
    assert starts_in(submit(project)) is None


def test_a_running_job_has_no_estimated_start(project: Project, node: WorkerNode) -> None:
    submit(project)
    assert starts_in(claim()) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (20, "in a moment"),
        (60, "in about 1 min"),
        (1300, "in about 20 min"),
        (5500, "in about 1.5 h"),
        (4e5, "in about 5 days"),
    ],
)
def test_estimates_are_rounded(seconds: float, text: str) -> None:
    assert StartEstimate(seconds).text == text
