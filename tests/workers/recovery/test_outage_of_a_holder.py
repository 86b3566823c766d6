"""A worker that sleeps or is cut off within a transaction must not hold up everybody for ever."""

from __future__ import annotations

import time

import pytest
from django.db import DataError, InternalError, OperationalError, connection, transaction
from django.test import Client

from dashboard.models import Job, Project, State, TrainingRun, User
from tests.workers.conftest import claim, play
from tests.workers.programs import running, until
from workers.supervision.database_outage import Database
from workers.supervision.recorders import TrainRecorder

pytestmark = pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite knows no sessions")
# Reports a few steps.
STEPS = """
for step in range(1, 11):
    tell("Metrics", arm=0, step=step, values={"train/loss": 1 / step})
    tell("Progress", phase="training", step=step, total=10)
    time.sleep(0.3)
tell("ArmEnd", arm=0, outcome="failed", step=10, code="diverged", message="The end.")
tell("Failure", code="diverged", message="The end.")
tell("Finished", reason="failed")
"""
# Locks the first job's row and falls asleep, for longer than a test would wait.
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
def test_every_session_has_its_limits() -> None:
    with connection.cursor() as cursor:
        for name, limit in (("idle_in_transaction_session_timeout", "30s"), ("lock_timeout", "20s")):
            cursor.execute(f"SHOW {name}")
            assert cursor.fetchone() == (limit,)


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_sleeping_holder_loses_the_row(project: Project) -> None:
    job = Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None)

    def is_locked() -> bool:
        try:
            with transaction.atomic():
                Job.objects.select_for_update(nowait=True).get(pk=job.pk)
        except OperationalError:
            return True
        return False

    with running("-c", SLEEPER):
        until(is_locked, 60, "the row is held")
        until(lambda: not is_locked(), 30, "the row is free again")
        assert job.request_cancel()


def limit_sleep() -> None:
    """From here on the server ends this session when it sleeps within a transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SET idle_in_transaction_session_timeout = '500ms'")


@pytest.mark.django_db(transaction=True)
def test_a_holder_that_wakes_goes_on(project: Project) -> None:
    job = Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None)
    naps, link = [1.5], Database()

    def write() -> None:
        with transaction.atomic():
            held = Job.objects.select_for_update().get(pk=job.pk)
            while naps:
                time.sleep(naps.pop())
            Job.objects.filter(pk=held.pk).update(phase="awake")

    limit_sleep()
    assert not link.try_write(write), "the session was ended meanwhile"
    link.last_tried = 0.0
    assert link.try_write(write)
    assert Job.objects.get(pk=job.pk).phase == "awake"


@pytest.mark.django_db(transaction=True)
def test_an_attempt_whose_worker_slept_within_a_transaction_comes_to_its_end(
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
    limit_sleep()
    ended = play(STEPS, job, monkeypatch)
    assert not naps
    assert (ended.state, ended.error_code, ended.attempt) == (State.FAILED, "diverged", 1)
    assert [step for step, _loss in run.metric_series.get(name="train/loss").points()] == list(range(1, 11))


@pytest.mark.django_db(transaction=True)
def test_a_page_that_slept_within_a_transaction_says_when_to_come_back(
    client: Client, vera: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(*_arguments: object) -> None:
        limit_sleep()
        with transaction.atomic():
            Project.objects.count()
            time.sleep(1.5)
            Project.objects.count()

    client.force_login(vera)
    client.raise_request_exception = False
    monkeypatch.setattr("dashboard.gate.current_project", sleep)
    answer = client.get("/")
    connection.close()
    assert (answer.status_code, answer.get("Retry-After")) == (503, "10")


@pytest.mark.django_db(transaction=True)
def test_a_server_that_only_reads_is_asked_again_later(project: Project) -> None:
    link = Database()
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
    assert not link.try_write(lambda: Project.objects.update(name="Renamed"))
    link.last_tried = 0.0
    assert link.try_write(lambda: Project.objects.update(name="Renamed")), "on a connection of its own"


@pytest.mark.django_db(transaction=True)
def test_a_fault_of_the_program_is_still_one() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        with pytest.raises(DataError):
            cursor.execute("SELECT 1 / 0")
        with pytest.raises(InternalError):
            cursor.execute("SELECT 1")
        transaction.set_rollback(True)
