"""A node's life signs: what it leaves behind, and what it makes of what a dead one left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery.signals import worker_init
from django.conf import settings

from dashboard.models import WorkerNode
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
