"""Claims in the order of the queue, and paused workers."""

from __future__ import annotations

from dashboard.models import Job, Project, WorkerNode
from dashboard.models.jobs.job_state import LIVE, db_now
from dashboard.models.jobs.queue_order import EARLY_KINDS


def submit(project: Project, kind: Job.Kind = Job.Kind.IMPORT) -> Job:
    return Job.objects.submit(kind, {}, project=project, by=None)


def claim(worker: str = "cpu@host", queue: str = "cpu") -> Job | None:
    return Job.objects.claim(queue, worker=worker, slot=None, host="host", pid=1, pid_started=1.0)


def end(job: Job) -> None:
    for event in ("progress", "work_done", "succeed"):
        job.move(event)


def test_one_worker_alternates_between_projects(project: Project, other_project: Project) -> None:
    for _number in range(3):
        submit(project)
    for _number in range(2):
        submit(other_project)
    projects = []
    while job := claim():
        projects.append(job.project)
        end(job)
    assert projects == [project, other_project, project, other_project, project]


def test_positions_are_the_order_of_claims(project: Project, other_project: Project) -> None:
    for number in range(10):
        job = submit(other_project if number % 3 else project)
        Job.objects.filter(pk=job.pk).update(priority=(0, 0, 1, 0, -1)[number % 5])
    order = list(Job.objects.claim_order("cpu"))
    assert [Job.objects.get(pk=pk).position() for pk in order] == [*range(1, 11)]
    claimed = [claim() for _number in order]
    assert [job and job.pk for job in claimed] == order


def test_a_long_study_does_not_delay_the_scores_of_its_first_seed(project: Project) -> None:
    trainings = [submit(project, Job.Kind.TRAIN) for _seed in range(3)]
    first = claim("gpu@host", "gpu")
    assert first == trainings[0]
    end(first)
    scores = submit(project, Job.Kind.EVALUATE)
    assert scores.position() == 1
    assert claim("gpu@host", "gpu") == scores


def test_every_kind_of_the_order_exists() -> None:
    assert set(EARLY_KINDS) <= set(Job.Kind.values)


def test_starts_before_the_last_day_do_not_count(project: Project, other_project: Project) -> None:
    first = submit(project)
    claim()
    end(first)
    older, _newer = submit(project), submit(other_project)
    Job.objects.filter(pk=first.pk).update(started_at="2026-01-01T00:00Z")
    assert claim() == older


def test_a_paused_worker_claims_nothing_until_it_is_resumed(project: Project) -> None:
    job = submit(project)
    WorkerNode.objects.register("cpu@host", queue="cpu", host="host", pid=1)
    node = WorkerNode.objects.get()
    node.pause(by="Mara")
    assert claim() is None
    assert claim("other@host") == job
    submit(project)
    node.resume()
    assert claim() is not None


def test_a_paused_worker_keeps_its_job_and_stays_paused_after_a_restart(project: Project) -> None:
    submit(project)
    job = claim()
    assert job
    WorkerNode.objects.register("cpu@host", queue="cpu", host="host", pid=1)
    WorkerNode.objects.get().pause(by="Mara")
    assert job.renew_lease()
    WorkerNode.objects.register("cpu@host", queue="cpu", host="host", pid=2, started_at=db_now())
    node = WorkerNode.objects.get()
    assert (node.paused_by, node.paused_at is None, job.state in LIVE) == ("Mara", False, True)
    assert WorkerNode.objects.slots_by_worker("cpu") == {}
