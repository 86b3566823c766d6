"""A process that is paused or cut off within a transaction loses its locks after a limit."""

from __future__ import annotations

import time

import pytest
from django.db import DataError, InternalError, OperationalError, connection, transaction
from django.test import Client

from dashboard.models import Job, Project, State, TrainingRun, User
from tests.workers.conftest import claim, run_script
from tests.workers.programs import running, wait_until
from workers.supervision.database_outage import Database
from workers.supervision.recorders import TrainRecorder

pytestmark = pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no sessions")
STEPS = """
for step in range(1, 11):
    emit("Metrics", arm=0, step=step, values={"train/loss": 1 / step})
    emit("Progress", phase="training", step=step, total=10)
    time.sleep(0.3)
emit("ArmEnd", arm=0, outcome="failed", step=10, code="diverged", message="The end.")
emit("Failure", code="diverged", message="The end.")
emit("Finished", reason="failed")
"""
# Locks the first job's row and sleeps for longer than the test waits.
SLEEPER = """
import time
import django
django.setup()
from django.db import connection, transaction
from dashboard.models import Job
with connection.cursor() as cursor:
    cursor.execute("SET idle_in_transaction_session_timeout = '4s'")
with transaction.atomic():
    Job.objects.select_for_update().earliest("pk")
    time.sleep(600)
"""


@pytest.mark.django_db
def test_sessions_have_time_limits() -> None:
    with connection.cursor() as cursor:
        for name, limit in (("idle_in_transaction_session_timeout", "30s"), ("lock_timeout", "20s")):
            cursor.execute(f"SHOW {name}")
            assert cursor.fetchone() == (limit,)


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_paused_process_loses_its_row_lock(project: Project) -> None:
    job = Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None)

    def is_locked() -> bool:
        try:
            with transaction.atomic():
                Job.objects.select_for_update(nowait=True).get(pk=job.pk)
        except OperationalError:
            return True
        return False

    with running("-c", SLEEPER):
        wait_until(is_locked, "the row is locked")
        wait_until(lambda: not is_locked(), "the row is free again", 30)
        assert job.request_cancel()


def limit_idle_transactions() -> None:
    """Let the server end this session soon when it idles within a transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SET idle_in_transaction_session_timeout = '500ms'")


@pytest.mark.django_db(transaction=True)
def test_write_is_repeated_after_the_session_was_ended(project: Project) -> None:
    job = Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None)
    naps, link = [1.5], Database()

    def write() -> None:
        with transaction.atomic():
            held = Job.objects.select_for_update().get(pk=job.pk)
            while naps:
                time.sleep(naps.pop())
            Job.objects.filter(pk=held.pk).update(phase="awake")

    limit_idle_transactions()
    assert not link.try_write(write)
    link.last_tried = 0.0
    assert link.try_write(write)
    assert Job.objects.get(pk=job.pk).phase == "awake"


@pytest.mark.django_db(transaction=True)
def test_attempt_ends_although_its_session_was_ended(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, flush, naps = claim("gpu"), TrainRecorder.flush, [1.5]

    def sleep_and_flush(recorder: TrainRecorder) -> None:
        with transaction.atomic():
            Job.objects.select_for_update().get(pk=job.pk)
            while naps:
                time.sleep(naps.pop())
            flush(recorder)

    monkeypatch.setattr(TrainRecorder, "flush", sleep_and_flush)
    limit_idle_transactions()
    ended = run_script(STEPS, job, monkeypatch)
    assert not naps
    assert (ended.state, ended.error_code, ended.attempt) == (State.FAILED, "diverged", 1)
    assert [step for step, _loss in run.metric_series.get(name="train/loss").points()] == list(range(1, 11))


@pytest.mark.django_db(transaction=True)
def test_page_whose_session_was_ended_answers_503(
    client: Client, vera: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(*_arguments: object) -> None:
        limit_idle_transactions()
        with transaction.atomic():
            Project.objects.count()
            time.sleep(1.5)
            Project.objects.count()

    client.force_login(vera)
    client.raise_request_exception = False
    monkeypatch.setattr("dashboard.gate.current_project", sleep)
    response = client.get("/")
    connection.close()
    assert (response.status_code, response.get("Retry-After")) == (503, "10")


@pytest.mark.django_db(transaction=True)
def test_write_is_repeated_after_the_server_was_read_only(project: Project) -> None:
    link = Database()
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
    assert not link.try_write(lambda: Project.objects.update(name="Renamed"))
    link.last_tried = 0.0
    assert link.try_write(lambda: Project.objects.update(name="Renamed"))


@pytest.mark.django_db(transaction=True)
def test_programming_error_is_no_outage() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        with pytest.raises(DataError):
            cursor.execute("SELECT 1 / 0")
        with pytest.raises(InternalError):
            cursor.execute("SELECT 1")
        transaction.set_rollback(True)
