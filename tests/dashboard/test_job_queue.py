"""Claiming in turn: fair between people and projects, refused to a paused worker, as the place promised."""

from __future__ import annotations

from dashboard.models import Job, Project, User, WorkerNode
from dashboard.models.job_state import LIVE, db_now


def submit(project: Project, by: User | None = None, kind: Job.Kind = Job.Kind.IMPORT) -> Job:
    return Job.objects.submit(kind, {}, project=project, by=by)


def claim(worker: str = "cpu@host", queue: str = "cpu") -> Job | None:
    return Job.objects.claim(queue, worker=worker, slot=None, host="host", pid=1, pid_started=1.0)


def end(job: Job) -> None:
    for event in ("progress", "work_done", "succeed"):
        job.move(event)


def test_many_jobs_of_one_person_do_not_hold_up_another(project: Project, ed: User, mara: User) -> None:
    for _number in range(5):
        submit(project, ed)
    hers = submit(project, mara)
    first, second = claim(), claim()
    assert first
    assert second
    assert (first.created_by, second) == (ed, hers)


def test_many_jobs_of_one_project_do_not_hold_up_another(project: Project, other_project: Project) -> None:
    for _number in range(5):
        submit(project)
    theirs = submit(other_project)
    claim()
    assert claim() == theirs


def test_one_worker_alternates_although_nothing_is_held(project: Project, ed: User, mara: User) -> None:
    for _number in range(3):
        submit(project, ed)
    for _number in range(2):
        submit(project, mara)
    people = []
    while job := claim():
        people.append(job.created_by)
        end(job)
    assert people == [ed, mara, ed, mara, ed]


def test_the_places_come_true(project: Project, other_project: Project, ed: User, mara: User) -> None:
    """Two workers, three people, two projects, three priorities: as shown, so claimed."""
    WorkerNode.objects.register("cpu@host", queue="cpu", host="host", pid=1, processes=2)
    for number, person in enumerate([ed, ed, ed, mara, None, ed, mara, ed, None, mara]):
        job = submit(other_project if person is None else project, person)
        Job.objects.filter(pk=job.pk).update(priority=(0, 0, 1, 0, -1)[number % 5])
    claim(), claim()
    promised = list(Job.objects.claim_order("cpu", {"cpu@host": 2}))
    assert promised == sorted(promised, key=lambda pk: Job.objects.get(pk=pk).position() or 0)
    came = []
    while Job.objects.waiting("cpu").exists():
        oldest = Job.objects.live().order_by("started_at", "pk")[0]
        end(oldest)
        next_one = claim()
        assert next_one
        came.append(next_one.pk)
    assert came == promised


def test_a_turn_of_last_week_is_forgotten(project: Project, ed: User, mara: User) -> None:
    first = submit(project, ed)
    claim()
    end(first)
    older, _newer = submit(project, ed), submit(project, mara)
    Job.objects.filter(pk=first.pk).update(started_at="2026-01-01T00:00Z")
    assert claim() == older


def test_a_paused_worker_takes_nothing_until_it_is_resumed(project: Project) -> None:
    job = submit(project)
    WorkerNode.objects.register("cpu@host", queue="cpu", host="host", pid=1)
    node = WorkerNode.objects.get()
    node.pause(by="Mara")
    assert claim() is None
    assert claim("other@host") == job
    submit(project)
    node.resume()
    assert claim() is not None


def test_a_paused_worker_keeps_what_it_has_and_stays_paused_over_a_restart(project: Project) -> None:
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


def test_a_paused_workers_job_frees_no_place(
    project: Project, other_project: Project, ed: User, mara: User
) -> None:
    WorkerNode.objects.register("paused@host", queue="cpu", host="host", pid=1)
    WorkerNode.objects.register("cpu@host", queue="cpu", host="host", pid=2)
    submit(project, ed)
    claim("paused@host")
    WorkerNode.objects.get(name="paused@host").pause(by="Mara")
    waiting = [submit(project, ed), submit(other_project), submit(other_project)]
    theirs = [job.pk for job in waiting[1:]]
    promised = list(Job.objects.claim_order("cpu", WorkerNode.objects.slots_by_worker("cpu")))
    assert promised[0] == theirs[0]
    came = []
    while job := claim():
        came.append(job.pk)
        end(job)
    assert came == promised
