"""A worker that sleeps or is cut off within a transaction must not hold up everybody for ever."""

from __future__ import annotations

import pytest
from django.db import OperationalError, connection, transaction

from dashboard.models import Job, Project
from tests.workers.programs import running, until

pytestmark = pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite knows no sessions")
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
