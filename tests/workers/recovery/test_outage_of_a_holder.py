"""A process that is paused or cut off within a transaction loses its locks after a limit."""

from __future__ import annotations

import time

import pytest
from django.db import DataError, InternalError, connection, transaction
from django.test import Client

from dashboard.models import Job, Project, User
from workers.supervision.database_outage import Database

pytestmark = pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no sessions")


@pytest.mark.django_db
def test_sessions_have_time_limits() -> None:
    with connection.cursor() as cursor:
        for name, limit in (("idle_in_transaction_session_timeout", "30s"), ("lock_timeout", "20s")):
            cursor.execute(f"SHOW {name}")
            assert cursor.fetchone() == (limit,)


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
