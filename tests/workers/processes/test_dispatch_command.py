"""`manage.py dispatch` as a process: a silent broker, a killed leader, an orderly end."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from dashboard.models import Job, Outbox, Project, State, TrainingRun, WorkerNode
from dashboard.models.jobs.job_state import db_now
from tests.workers.conftest import claim
from tests.workers.programs import running, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]


def dispatching(port: int = 1) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Run the command with a broker on that port, where none listens by default."""
    return running("manage.py", "dispatch", REDIS_URL=f"redis://127.0.0.1:{port}/0")


@pytest.fixture(autouse=True)
def without_installation_id() -> Iterator[None]:
    """The tests share a data folder, which must not stay bound to this test's database."""
    yield
    (Path(settings.DATA_DIR) / "installation-id").unlink(missing_ok=True)


def leader() -> WorkerNode | None:
    return WorkerNode.objects.leading().first()


def is_other_leader(first: WorkerNode) -> bool:
    return WorkerNode.objects.leading().exclude(pk=first.pk).exists()


def longest_heartbeat_gap(seconds: float) -> timedelta:
    """Watch the only dispatcher and return the longest time without a heartbeat."""
    longest, began = timedelta(), time.monotonic()
    while time.monotonic() - began < seconds:
        longest = max(longest, timezone.now() - WorkerNode.objects.get().heartbeat_at)
        time.sleep(0.25)
    return longest


@pytest.mark.proof
def test_silent_broker_delays_only_wake_ups(run: TrainingRun, project: Project) -> None:
    job = claim("gpu")
    Job.objects.filter(pk=job.pk).update(lease_until=db_now(-timedelta(minutes=10)))
    Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        dispatching(silent.getsockname()[1]),
    ):
        wait_until(leader, "the dispatcher leads")
        # The first dispatcher grants holders a lease of grace; end it.
        WorkerNode.objects.update(grants_grace_until=None)
        wait_until(lambda: Job.objects.get(pk=job.pk).state == State.QUEUED, "the lost job waits again")
        wait_until(WorkerNode.objects.exclude(broker_silent_since=None).exists, "the silence is recorded")
        # A publication blocks for 5 s. A busy machine may delay one heartbeat as long, not three times.
        assert any(longest_heartbeat_gap(8) < timedelta(seconds=4.5) for _try in range(3))
    assert not Outbox.objects.exclude(sent_at=None).exists()
    assert Outbox.objects.unsent().count() >= 2


def test_second_dispatcher_takes_over_from_a_killed_leader(db: None) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(dispatching()) for _number in range(2)]
        wait_until(lambda: WorkerNode.objects.count() == 2 and leader(), "both run and one leads")
        first = leader()
        assert first
        victim = next(process for process in processes if process.pid == first.pid)
        victim.kill()
        victim.wait()
        first.refresh_from_db()
        assert first.leads_until
        assert first.leads_until - timezone.now() < timedelta(seconds=30)
        WorkerNode.objects.filter(pk=first.pk).update(leads_until=db_now(timedelta(seconds=2)))
        wait_until(lambda: is_other_leader(first), "the other one leads")


def test_restarted_dispatcher_leads_at_once_and_ends_in_order(db: None) -> None:
    with dispatching() as process:
        wait_until(leader, "the dispatcher leads")
        process.kill()
        process.wait()
    first = WorkerNode.objects.get()
    WorkerNode.objects.update(leads_until=db_now(timedelta(hours=1)))
    with dispatching() as process:
        wait_until(lambda: is_other_leader(first), "the new one leads")
        process.terminate()
        assert process.wait(timeout=20) == 0
    node = WorkerNode.objects.exclude(pk=first.pk).get()
    assert node.stopped_at
    assert node.leads_until is None
