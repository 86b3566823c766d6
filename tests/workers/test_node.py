"""A node's life signs: what it leaves behind, and what it makes of what a dead one left."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
from celery.signals import worker_init
from django.conf import settings

from dashboard.models import Job, State, TrainingRun, WorkerNode
from tests.workers.conftest import claim
from workers import node


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


def test_its_row_says_that_it_drains(db: None, flag: Path) -> None:
    WorkerNode.objects.beat("gpu0@host", queue="gpu", host="host", pid=1)
    node.sign_life("gpu0@host")
    assert not WorkerNode.objects.get().draining
    flag.touch()
    node.sign_life("gpu0@host")
    assert WorkerNode.objects.get().draining


def test_a_killed_pool_process_gives_its_job_back_within_seconds(
    run: TrainingRun, flag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = subprocess.Popen(["sleep", "60"])
    job = claim("gpu")
    started = psutil.Process(pool.pid).create_time()
    Job.objects.filter(pk=job.pk).update(pid=pool.pid, pid_started=started)
    host = socket.gethostname()
    assert node.release_abandoned_jobs(host, worker="gpu@test") == 0, "it is at work"
    pool.kill()
    pool.wait()
    assert node.release_abandoned_jobs(host, worker="cpu@test") == 0, "that is another node's"
    monkeypatch.setattr(node, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(node, "sign_life", lambda _name: None)
    monkeypatch.setattr(node, "connection", Mock())  # the test goes on using it
    monkeypatch.setattr(node, "close_old_connections", node._stop.set)  # one round
    node._beat("gpu@test")
    node._stop.clear()
    job.refresh_from_db()
    assert job.state == State.INTERRUPTED
