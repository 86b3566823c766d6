"""A node's life signs: what it leaves behind, and what it makes of what a dead one left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery.signals import worker_init
from django.conf import settings

from dashboard.models import Job, State, TrainingRun, WorkerNode
from tests.workers.conftest import claim
from tests.workers.outages import breakable
from workers import node
from workers.abandoned import release_abandoned_jobs
from workers.identity import birth


@pytest.fixture
def flag() -> Iterator[Path]:
    path = Path(settings.DATA_DIR) / "run" / f"draining-{os.getpid()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path
    path.unlink(missing_ok=True)


def test_it_does_not_drain_because_a_killed_node_with_its_pid_did(flag: Path) -> None:
    flag.touch()
    worker_init.send(sender=None)
    assert not flag.exists()
    node.drain()
    assert flag.exists()


HANGING = """
import sys, threading, time
import django
django.setup()
from workers import node
node.WATCH_SECONDS, node.SILENT_SECONDS = 0.1, 0.3
life = node.Life("gpu0@host", {})
if sys.argv[1] == "working":
    import subprocess
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(30)'])"
    pool = subprocess.Popen([sys.executable, "-c", code])
    while not node.is_working():
        time.sleep(0.05)
threading.Thread(target=life.guard, daemon=True).start()
time.sleep(3)
print("still here")
if sys.argv[1] == "working":
    for child in node.psutil.Process().children(recursive=True):
        child.kill()
"""


def hang(how: str) -> subprocess.CompletedProcess[str]:
    """A node whose queries never come back, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", HANGING, how],
        capture_output=True,
        text=True,
        cwd=settings.BASE_DIR,
        timeout=60,
    )


def test_a_node_that_hangs_ends_so_that_it_is_started_again() -> None:
    ended = hang("idle")
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr


def test_a_node_that_hangs_spares_the_work_of_its_pool() -> None:
    ended = hang("working")
    assert (ended.returncode, ended.stdout) == (0, "still here\n"), ended.stderr


def test_a_node_that_starts_without_a_database_gets_its_row_later(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "WATCH_SECONDS", 0.2)
    sender = SimpleNamespace(
        hostname="gpu0@host",
        app=SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=["gpu"]))),
        controller=SimpleNamespace(concurrency=1),
    )
    with breakable() as (away, back):
        away()
        node.begin(sender)
        back()
        try:
            deadline = time.monotonic() + 20
            while not WorkerNode.objects.filter(name="gpu0@host").delete()[0]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert not node.sign_life("gpu0@host")
        finally:
            node._stop.set()
            time.sleep(0.5)
            node._stop.clear()
    assert not WorkerNode.objects.exists()


def test_its_row_says_that_it_drains(db: None, flag: Path) -> None:
    WorkerNode.objects.beat("gpu0@host", queue="gpu", host="host", pid=1)
    node.sign_life("gpu0@host")
    assert not WorkerNode.objects.get().draining
    flag.touch()
    node.sign_life("gpu0@host")
    assert WorkerNode.objects.get().draining


def test_a_killed_pool_process_gives_its_job_back_within_seconds(
    transactional_db: None, run: TrainingRun, flag: Path
) -> None:
    pool = subprocess.Popen(["sleep", "60"])
    job = claim("gpu")
    Job.objects.filter(pk=job.pk).update(pid=pool.pid, pid_started=birth(pool.pid))
    assert release_abandoned_jobs() == 0, "it is at work"
    pool.kill()
    pool.wait()
    node.Life("gpu@test", {}, signed=time.monotonic()).look()
    node._stop.clear()
    job.refresh_from_db()
    assert job.state == State.INTERRUPTED


def test_no_pool_process_is_forked_in_the_middle_of_a_look() -> None:
    """It would inherit notes of locks that it does not hold, and find SQLite locked for ever."""
    begun, ended = threading.Event(), threading.Event()

    def look() -> None:
        with node.asking:
            begun.set()
            time.sleep(0.5)
            ended.set()

    thread = threading.Thread(target=look)
    thread.start()
    begun.wait()
    child = os.fork()
    if not child:
        # The child may look, too.
        with node.asking:
            os._exit(0 if ended.is_set() else 1)
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
