"""The dispatcher's chores: the lead, recovery of lost jobs, grace for their holders, base models."""

from __future__ import annotations

import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection
from django.db.models import F
from django.utils import timezone

from dashboard.management.commands import dispatch
from dashboard.management.commands.dispatch import Dispatcher
from dashboard.models import BaseModel, Job, Project, State, TrainingRun, User, WorkerNode
from dashboard.models.jobs.job_state import db_now
from tests.conftest import finish, make_base_model
from tests.workers.conftest import claim
from workers.supervision.process_identity import birth, here

AGO = timedelta(minutes=10)


def run_round(dispatcher: Dispatcher) -> None:
    """Run each chore of the queue once."""
    for chore in dispatcher.queue_chores:
        chore.run()


def register(name: str, heartbeat: timedelta = timedelta(), pid: int = 1) -> str:
    """Write the row of a dispatcher whose last heartbeat was some time ago."""
    WorkerNode.objects.register(name, kind=WorkerNode.Kind.DISPATCHER, host="host", pid=pid)
    WorkerNode.objects.filter(name=name).update(heartbeat_at=db_now(-heartbeat))
    return name


def start_dispatcher(name: str = "dispatcher-2@elsewhere") -> Dispatcher:
    dispatcher = Dispatcher()
    dispatcher.name = name
    return dispatcher


def state_of(job: Job) -> str:
    return Job.objects.get(pk=job.pk).state


def expire_lease(job: Job, **values: object) -> Job:
    Job.objects.filter(pk=job.pk).update(lease_until=db_now(-AGO), **values)
    return job


@pytest.fixture
def late(run: TrainingRun) -> Job:
    """A job of another machine's worker whose lease has expired."""
    return expire_lease(claim("gpu"), host="elsewhere/aa/bb")


# Chores and heartbeat


@pytest.mark.django_db
def test_failing_chore_delays_no_other() -> None:
    stop, ran = threading.Event(), list[str]()

    def fail() -> None:
        raise FileNotFoundError

    def succeed() -> None:
        ran.append("succeed")
        stop.set()

    dispatch.run_chores((dispatch.Chore(fail), dispatch.Chore(succeed)), stop)
    assert ran == ["succeed"]


def test_round_records_heartbeat_disk_and_clock(dispatcher: Dispatcher) -> None:
    row = WorkerNode.objects.filter(name=dispatcher.name)
    row.update(heartbeat_at=db_now(-AGO))
    run_round(dispatcher)
    free_bytes, clock_ahead = row.alive().values_list("free_bytes", "clock_ahead").get()
    assert free_bytes == pytest.approx(shutil.disk_usage(settings.DATA_DIR).free, rel=0.2)
    assert clock_ahead == pytest.approx(0, abs=2)


# The lead


def test_lead_is_free_after_the_leader_left_or_its_lease_expired(dispatcher: Dispatcher) -> None:
    other = register("dispatcher-other@host")
    assert WorkerNode.objects.acquire_lead(dispatcher.name)
    assert not WorkerNode.objects.acquire_lead(other)
    dispatcher.leave()
    assert WorkerNode.objects.acquire_lead(other)
    WorkerNode.objects.filter(name=other).update(leads_until=db_now(-AGO))
    assert WorkerNode.objects.acquire_lead(dispatcher.name)


@pytest.mark.django_db(transaction=True)
def test_only_one_of_two_dispatchers_takes_a_free_lead() -> None:
    names = [register("dispatcher-1@host"), register("dispatcher-2@host")]

    def lead(name: str) -> bool:
        start.wait()
        try:
            return WorkerNode.objects.acquire_lead(name)
        finally:
            connection.close()

    for _round in range(10):
        WorkerNode.objects.update(leads_until=None)
        start = threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(lead, names)) == [False, True]


def test_lead_of_a_killed_predecessor_ends(dispatcher: Dispatcher) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    predecessor = register(f"dispatcher-{dead.pid}@{here()}", pid=dead.pid)
    # A container of the same host name has its own PIDs.
    register(f"dispatcher-{dead.pid}@box/aa/bb", pid=dead.pid)
    dispatcher.register()
    stopped = WorkerNode.objects.exclude(stopped_at=None).values_list("name", flat=True)
    assert list(stopped) == [predecessor]


# Lost jobs


def test_job_with_an_expired_lease_is_queued_again(dispatcher: Dispatcher, run: TrainingRun) -> None:
    job = expire_lease(claim("gpu"))
    run_round(dispatcher)
    assert state_of(job) == State.INTERRUPTED
    Job.objects.filter(pk=job.pk).update(run_after=db_now(-AGO))
    run_round(dispatcher)
    assert state_of(job) == State.QUEUED


def test_lease_that_is_renewed_in_between_is_kept(dispatcher: Dispatcher, run: TrainingRun) -> None:
    job = expire_lease(claim("gpu"))
    expired = Job.objects.with_expired_lease().get()
    job.renew_lease()
    dispatcher.recover(expired)
    assert state_of(job) == State.STARTING


def test_lost_job_that_was_stopping_is_cancelled(dispatcher: Dispatcher, run: TrainingRun, ed: User) -> None:
    job = claim("gpu")
    job.request_cancel(ed)
    expire_lease(job)
    run_round(dispatcher)
    run.refresh_from_db()
    assert run.state == "cancelled"


def test_job_that_is_cancelled_in_between_is_skipped(
    dispatcher: Dispatcher, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None)
    stale = Job.objects.filter(pk=job.pk)
    monkeypatch.setattr(type(stale), "due_for_retry", lambda _self: stale)
    run_round(dispatcher)


def test_job_of_a_dead_process_is_released_at_once(dispatcher: Dispatcher, run: TrainingRun) -> None:
    dead = subprocess.Popen(["true"])
    job = claim("gpu")
    Job.objects.filter(pk=job.pk).update(pid=dead.pid, pid_started=birth(dead.pid))
    dead.wait()
    run_round(dispatcher)
    assert state_of(job) == State.INTERRUPTED


# Grace: holders may renew their leases after all dispatchers or the database were away


def end_grace() -> None:
    """Let the grace pass, and free the lead."""
    WorkerNode.objects.exclude(grants_grace_until=None).update(
        grants_grace_until=db_now(timedelta(seconds=-1))
    )
    WorkerNode.objects.update(leads_until=None)


def test_leader_that_was_away_grants_grace(dispatcher: Dispatcher, late: Job) -> None:
    WorkerNode.objects.update(heartbeat_at=db_now(-AGO))
    run_round(dispatcher)
    assert state_of(late) == State.STARTING
    end_grace()
    run_round(dispatcher)
    assert state_of(late) == State.INTERRUPTED


@pytest.mark.parametrize("has_predecessor", [True, False])
def test_first_dispatcher_grants_the_grace_of_a_lease(late: Job, has_predecessor: bool) -> None:
    if has_predecessor:
        register("dispatcher-1@elsewhere", AGO)
    run_round(start_dispatcher())
    assert state_of(late) == State.STARTING
    until = WorkerNode.objects.get(name="dispatcher-2@elsewhere").grants_grace_until
    assert until is not None
    assert 80 < (until - timezone.now()).total_seconds() < 100
    end_grace()
    run_round(start_dispatcher())
    assert state_of(late) == State.INTERRUPTED


def test_grace_outlives_the_dispatcher_that_granted_it(late: Job) -> None:
    run_round(start_dispatcher("dispatcher-1@elsewhere"))
    WorkerNode.objects.update(leads_until=None)
    second = start_dispatcher()
    run_round(second)
    assert second.leads
    assert state_of(late) == State.STARTING


def test_second_dispatcher_that_returns_keeps_the_grace(dispatcher: Dispatcher, late: Job) -> None:
    other = register("dispatcher-1@elsewhere")
    WorkerNode.objects.update(heartbeat_at=db_now(-AGO), leads_until=None)
    WorkerNode.objects.record_dispatcher_heartbeat(other)
    run_round(dispatcher)
    assert dispatcher.leads
    assert state_of(late) == State.STARTING


def test_dispatcher_that_replaces_a_recent_one_grants_no_grace(late: Job) -> None:
    register("dispatcher-1@elsewhere", timedelta(seconds=20))
    run_round(start_dispatcher())
    assert state_of(late) == State.INTERRUPTED


def test_leader_that_slept_beside_another_grants_no_grace(dispatcher: Dispatcher, late: Job) -> None:
    WorkerNode.objects.update(heartbeat_at=db_now(-AGO))
    register("dispatcher-1@elsewhere")
    run_round(dispatcher)
    assert state_of(late) == State.INTERRUPTED


def test_leader_that_sleeps_within_a_round_grants_grace(
    dispatcher: Dispatcher, late: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep() -> None:
        WorkerNode.objects.update(heartbeat_at=db_now(-AGO))

    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "release_orphaned_jobs", sleep)
        run_round(dispatcher)
    assert state_of(late) == State.STARTING
    run_round(dispatcher)
    assert state_of(late) == State.STARTING


def test_database_clock_that_is_set_forward_expires_no_lease(
    dispatcher: Dispatcher, run: TrainingRun
) -> None:
    job = claim("gpu")
    hour = timedelta(hours=1)
    for rows, field in ((Job.objects.filter(pk=job.pk), "lease_until"), (WorkerNode.objects, "heartbeat_at")):
        rows.update(**{field: F(field) - hour})
    run_round(dispatcher)
    assert state_of(job) == State.STARTING
    assert job.renew_lease()
    end_grace()
    run_round(dispatcher)
    assert state_of(job) == State.STARTING


def test_restarted_machine_recovers_its_own_jobs_at_once(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = here()
    assert place
    job = expire_lease(claim("gpu"), host=f"{place.earlier_starts}before")
    monkeypatch.setattr("workers.supervision.orphaned_jobs.uptime", lambda: 20.0)
    run_round(start_dispatcher())
    assert state_of(job) == State.INTERRUPTED
    assert WorkerNode.objects.granting_grace().exists(), "jobs of other machines have grace"


# Base models


@pytest.fixture
def inspected_model(project: Project, tmp_path: Path) -> BaseModel:
    """A base model with its files, inspected with the installed libraries."""
    base_model = make_base_model(project)
    census = base_model.census or {}
    census["versions"] = {name: version(name) for name in ("peft", "transformers")}
    BaseModel.objects.filter(pk=base_model.pk).update(census=census, path=str(tmp_path))
    base_model.refresh_from_db()
    return base_model


def inspections(base_model: BaseModel) -> int:
    return Job.objects.filter(kind="inspect", project=base_model.project).count()


def test_bundled_model_is_inspected_once(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(settings, "BUNDLED_MODEL_DIR", tmp_path)
    for _round in range(2):
        dispatcher.tick()
    assert BaseModel.objects.get(source="bundled").job is not None
    assert Job.objects.filter(kind="inspect").count() == 1


@pytest.mark.parametrize(
    ("census", "path", "expected"), [({}, "", 0), ({"version": 1}, "", 1), ({"version": 1}, "/nowhere", 0)]
)
def test_model_with_an_old_census_is_inspected_again_once(
    dispatcher: Dispatcher, inspected_model: BaseModel, census: dict[str, object], path: str, expected: int
) -> None:
    before = inspections(inspected_model)
    BaseModel.objects.filter(pk=inspected_model.pk).update(
        census={**(inspected_model.census or {}), **census}, path=path or inspected_model.path
    )
    for _round in range(2):
        dispatcher.tick()
    assert inspections(inspected_model) == before + expected


def test_model_of_other_library_versions_is_inspected_again_once_per_start(
    dispatcher: Dispatcher, inspected_model: BaseModel
) -> None:
    before = inspections(inspected_model)
    census = {**(inspected_model.census or {}), "versions": {"peft": "0.1", "transformers": "4.0"}}
    BaseModel.objects.filter(pk=inspected_model.pk).update(census=census)
    dispatcher.started = timezone.now()
    dispatcher.tick()
    assert inspections(inspected_model) == before + 1
    # A worker with the old libraries inspects it.
    finish(BaseModel.objects.get(pk=inspected_model.pk).job)
    dispatcher.tick()
    assert inspections(inspected_model) == before + 1
