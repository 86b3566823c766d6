"""`manage.py dispatch` as a process of its own: a broker that hangs, a leader that is killed."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from dashboard.models import Job, Outbox, Project, State, TrainingRun, WorkerNode
from dashboard.models.jobs.job_state import db_now
from tests.conftest import shared_environment
from tests.workers.conftest import claim

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]
SECONDS = 60


def until(holds: Callable[[], object], what: str) -> None:
    """Wait for it, but not for ever."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {SECONDS} s"
        time.sleep(0.1)


@contextmanager
def dispatching(broker: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command, on this test's database."""
    process = subprocess.Popen(
        [sys.executable, "manage.py", "dispatch"],
        cwd=settings.BASE_DIR,
        env={**shared_environment(), "REDIS_URL": broker},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(autouse=True)
def unmarked() -> Iterator[None]:
    """All tests share one data folder, and this database goes with the test."""
    yield
    (Path(settings.DATA_DIR) / "installation-id").unlink(missing_ok=True)


def leader() -> WorkerNode | None:
    return WorkerNode.objects.leading().first()


def longest_silence(seconds: float) -> timedelta:
    """The longest time without a life sign of the only dispatcher, watched for so long."""
    longest, began = timedelta(), time.monotonic()
    while time.monotonic() - began < seconds:
        longest = max(longest, timezone.now() - WorkerNode.objects.get().heartbeat_at)
        time.sleep(0.25)
    return longest


def test_a_silent_broker_holds_up_nothing_else(run: TrainingRun, project: Project) -> None:
    job = claim("gpu")
    Job.objects.filter(pk=job.pk).update(lease_until=db_now(-timedelta(minutes=10)))
    Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None)
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))  # takes calls, never answers
        stack.enter_context(dispatching(f"redis://127.0.0.1:{silent.getsockname()[1]}/0"))
        until(leader, "it leads")
        # Where nobody was at work before, it spares holders for a lease: that time is over now.
        WorkerNode.objects.update(grants_grace_until=None)
        until(lambda: Job.objects.get(pk=job.pk).state == State.QUEUED, "the lost job waits again")
        until(lambda: leader() and leader().broker_silent_since, "the silence is noted")  # type: ignore[union-attr]
        # Each try to publish takes 5 s, every 10 s. A busy machine may stall it once, not three times.
        assert any(longest_silence(12) < timedelta(seconds=4.5) for _try in range(3)), "its life signs go on"
    assert not Outbox.objects.exclude(sent_at=None).exists()
    assert Outbox.objects.unsent().count() >= 2, "nothing is lost"


def test_another_dispatcher_takes_over_from_one_that_was_killed(db: None) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(dispatching("redis://127.0.0.1:1/0")) for _which in range(2)]
        until(lambda: WorkerNode.objects.count() == 2 and leader(), "both are there and one leads")
        first = leader()
        assert first
        assert first.leads_until
        victim = next(process for process in processes if process.pid == first.pid)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        first.refresh_from_db()
        assert first.leads_until - timezone.now() < timedelta(seconds=30), "so long the other one waits"
        WorkerNode.objects.filter(pk=first.pk).update(leads_until=db_now(timedelta(seconds=2)))
        until(lambda: (now := leader()) and now.pk != first.pk, "the other one leads")


def test_one_that_is_started_again_need_not_wait_for_its_dead_self(db: None) -> None:
    with dispatching("redis://127.0.0.1:1/0") as process:
        until(leader, "it leads")
        process.kill()
        process.wait()
        first = WorkerNode.objects.get()
        WorkerNode.objects.update(leads_until=db_now(timedelta(hours=1)))
        with dispatching("redis://127.0.0.1:1/0"):
            until(lambda: (now := leader()) and now.pk != first.pk, "the new one leads")


def test_it_says_good_bye(db: None) -> None:
    with dispatching("redis://127.0.0.1:1/0") as process:
        until(leader, "it leads")
        process.terminate()
        assert process.wait(timeout=20) == 0
    node = WorkerNode.objects.get()
    assert node.stopped_at
    assert node.leads_until is None
