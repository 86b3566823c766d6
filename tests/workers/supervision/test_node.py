"""A node's life signs: what it leaves behind, and what it makes of what a dead one left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery.signals import worker_init
from django.conf import settings

from dashboard.models import Job, State, TrainingRun, WorkerNode
from dashboard.models.jobs.job_state import db_now
from tests.workers.conftest import claim
from tests.workers.outages import breakable
from workers.supervision import heartbeat
from workers.supervision.orphaned_jobs import holder, release_orphaned_jobs
from workers.supervision.process_identity import Place, birth, here

HERE = here()
assert HERE is not None
MACHINE = HERE.machine
# A container of the same host name.
THERE = Place("host/0123abcd", "ef")


@pytest.fixture
def flag() -> Iterator[Path]:
    path = heartbeat._drain_flag(os.getpid())
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path
    path.unlink(missing_ok=True)


def test_it_does_not_drain_because_a_killed_node_with_its_pid_did(flag: Path) -> None:
    flag.touch()
    worker_init.send(sender=None)
    assert not flag.exists()
    heartbeat.set_drain_flag()
    assert flag.exists()


HANGING = """
import sys, threading, time
import django
django.setup()
from workers import node
node.WATCH_SECONDS, node.SILENT_SECONDS = 0.1, 0.3
life = node.Heartbeat("gpu0@host", {})
if sys.argv[1] == "working":
    import subprocess
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(30)'])"
    pool = subprocess.Popen([sys.executable, "-c", code])
    while not node.has_engine():
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
    monkeypatch.setattr(heartbeat, "WATCH_SECONDS", 0.2)
    sender = SimpleNamespace(
        hostname="gpu0@host",
        app=SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=["gpu"]))),
        controller=SimpleNamespace(concurrency=1),
    )
    with breakable() as (away, back):
        away()
        heartbeat.start(sender)
        back()
        try:
            deadline = time.monotonic() + 20
            while not WorkerNode.objects.filter(name="gpu0@host").delete()[0]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert not heartbeat.record_heartbeat("gpu0@host", MACHINE)
        finally:
            heartbeat._stop.set()
            time.sleep(0.5)
            heartbeat._stop.clear()
    assert not WorkerNode.objects.exists()


def test_its_row_says_that_it_drains(db: None, flag: Path) -> None:
    WorkerNode.objects.register("gpu0@host", queue="gpu", host="host", pid=1, place=MACHINE)
    heartbeat.record_heartbeat("gpu0@host", MACHINE)
    assert not WorkerNode.objects.get().draining
    flag.touch()
    heartbeat.record_heartbeat("gpu0@host", MACHINE)
    assert WorkerNode.objects.get().draining


def test_it_does_not_drain_because_a_node_in_another_container_has_its_number(
    flag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.supervision.device_lock.here", lambda: THERE)
    heartbeat.set_drain_flag()
    assert heartbeat.is_shutting_down()
    monkeypatch.undo()
    assert not heartbeat.is_shutting_down()
    assert not flag.exists()


def sign_on(place: str, **facts: object) -> None:
    """A node of the usual name that is alive at a place."""
    WorkerNode.objects.register("gpu0@host", queue="gpu", host="host", pid=1, place=place, **facts)


def life() -> heartbeat.Heartbeat:
    return heartbeat.Heartbeat("gpu0@host", {"queue": "gpu", "host": "host", "pid": 2, "place": MACHINE})


def test_a_name_that_lives_elsewhere_too_gets_its_place_beside_it(db: None) -> None:
    sign_on(THERE.machine)
    mine = life()
    mine.keep_row()
    assert WorkerNode.objects.count() == 1, "the other row may be that of its own life before"
    sign_on(THERE.machine)
    mine.keep_row()
    names = WorkerNode.objects.values_list("name", "place")
    own = f"gpu0@host/{MACHINE.rpartition('/')[2]}"
    assert set(names) == {("gpu0@host", THERE.machine), (own, MACHINE)}
    assert heartbeat.record_heartbeat("gpu0@host", MACHINE)
    assert heartbeat.row_name("gpu0@host") == own, "its pool claims jobs under that name"


def test_it_takes_over_the_row_and_the_pause_of_its_life_before(db: None) -> None:
    sign_on(THERE.machine)
    WorkerNode.objects.get().pause(by="Mara")
    mine = life()
    mine.keep_row()
    WorkerNode.objects.update(heartbeat_at=db_now(timedelta(minutes=-1)))
    mine.keep_row()
    row = WorkerNode.objects.get()
    assert (row.name, row.place, row.paused_by) == ("gpu0@host", MACHINE, "Mara")


@pytest.mark.parametrize("place", [MACHINE, ""])
def test_a_restart_at_the_same_place_keeps_its_row(db: None, place: str) -> None:
    sign_on(place)
    life().keep_row()
    assert WorkerNode.objects.get().pid == 2


def test_two_that_started_in_the_same_moment_part_at_the_next_heartbeat(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = life()
    mine.keep_row()
    sign_on(THERE.machine)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0)
    for _look in range(3):
        mine.keep_row()
        sign_on(THERE.machine)
    assert WorkerNode.objects.count() == 2


def test_a_pause_of_one_does_not_hold_up_the_other(db: None, run: TrainingRun) -> None:
    sign_on(THERE.machine)
    WorkerNode.objects.get().pause(by="Mara")
    mine = life()
    mine.keep_row()
    sign_on(THERE.machine)
    mine.keep_row()
    assert Job.objects.claim("gpu", worker="gpu0@host", slot="one", **holder()) is None
    own = heartbeat.row_name("gpu0@host")
    assert Job.objects.claim("gpu", worker=own, slot="other", **holder()) == run.job


def test_a_killed_pool_process_gives_its_job_back_within_seconds(
    transactional_db: None, run: TrainingRun, flag: Path
) -> None:
    pool = subprocess.Popen(["sleep", "60"])
    job = claim("gpu")
    Job.objects.filter(pk=job.pk).update(pid=pool.pid, pid_started=birth(pool.pid))
    assert release_orphaned_jobs() == 0, "it is at work"
    pool.kill()
    pool.wait()
    heartbeat.Heartbeat("gpu@test", {}, written=time.monotonic()).beat()
    heartbeat._stop.clear()
    job.refresh_from_db()
    assert job.state == State.INTERRUPTED


def test_no_pool_process_is_forked_in_the_middle_of_a_look() -> None:
    """It would inherit notes of locks that it does not hold, and find SQLite locked for ever."""
    begun, ended = threading.Event(), threading.Event()

    def look() -> None:
        with heartbeat.query_lock:
            begun.set()
            time.sleep(0.5)
            ended.set()

    thread = threading.Thread(target=look)
    thread.start()
    begun.wait()
    child = os.fork()
    if not child:
        # The child may look, too.
        with heartbeat.query_lock:
            os._exit(0 if ended.is_set() else 1)
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
