"""A node's heartbeat, its row, its drain flag, and the jobs that a dead one left."""

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
from django.db import connection

from dashboard.models import Job, State, TrainingRun, WorkerNode
from dashboard.models.jobs.job_state import db_now
from tests.workers.conftest import claim
from tests.workers.outages import breakable_database
from workers.supervision import heartbeat
from workers.supervision.orphaned_jobs import holder, release_orphaned_jobs
from workers.supervision.process_identity import Place, birth, here

PLACE = here()
assert PLACE is not None
MACHINE = PLACE.machine
# A container of the same host name.
OTHER = Place("host/0123abcd", "ef")


@pytest.fixture
def flag() -> Iterator[Path]:
    path = heartbeat._drain_flag(os.getpid())
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path
    path.unlink(missing_ok=True)


def test_drain_flag_of_a_killed_node_with_the_same_pid_is_deleted(flag: Path) -> None:
    flag.touch()
    worker_init.send(sender=None)
    assert not flag.exists()
    heartbeat.set_drain_flag()
    assert flag.exists()


HANGING = """
import subprocess, sys, threading, time
import django
django.setup()
from workers.supervision import heartbeat
heartbeat.WATCH_SECONDS, heartbeat.SILENT_SECONDS = 0.1, 0.3
beat = heartbeat.Heartbeat("gpu0@host", {})
child = [sys.executable, "-c", "import time; time.sleep(6)", sys.argv[1]]
pool = subprocess.Popen([sys.executable, "-c", f"import subprocess; subprocess.run({child})"])
while not heartbeat.psutil.Process(pool.pid).children():
    time.sleep(0.05)
time.sleep(0.5)
threading.Thread(target=beat.guard, daemon=True).start()
time.sleep(2)
print("alive")
"""


def run_hanging_node(child: str) -> subprocess.CompletedProcess[str]:
    """Run a node whose queries never return, in its own process; `child` runs below its pool process."""
    return subprocess.run(
        [sys.executable, "-c", HANGING, child],
        capture_output=True,
        text=True,
        cwd=settings.BASE_DIR,
        timeout=60,
    )


def test_hanging_node_exits() -> None:
    ended = run_hanging_node("workers.engine.fork_server")
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr


def test_hanging_node_with_a_running_engine_stays() -> None:
    ended = run_hanging_node("workers.engine")
    assert (ended.returncode, ended.stdout) == (0, "alive\n"), ended.stderr


@pytest.mark.skipif(connection.vendor == "sqlite", reason="Only a server can be away.")
def test_node_without_a_database_registers_later(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "WATCH_SECONDS", 0.2)
    sender = SimpleNamespace(
        hostname="gpu0@host",
        app=SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=["gpu"]))),
        controller=SimpleNamespace(concurrency=1),
    )
    with breakable_database() as (cut, restore):
        before = set(threading.enumerate())
        cut()
        heartbeat.start(sender)
        restore()
        try:
            deadline = time.monotonic() + 20
            while not WorkerNode.objects.filter(name="gpu0@host").delete()[0]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert not heartbeat.record_heartbeat("gpu0@host", MACHINE)
        finally:
            heartbeat._stop.set()
            # A thread that still has the database open would disturb the next tests.
            for thread in set(threading.enumerate()) - before:
                thread.join(20)
                assert not thread.is_alive()
            heartbeat._stop.clear()
    assert not WorkerNode.objects.exists()


def test_row_shows_that_the_node_drains(db: None, flag: Path) -> None:
    WorkerNode.objects.register("gpu0@host", queue="gpu", host="host", pid=1, place=MACHINE)
    heartbeat.record_heartbeat("gpu0@host", MACHINE)
    assert not WorkerNode.objects.get().draining
    flag.touch()
    heartbeat.record_heartbeat("gpu0@host", MACHINE)
    assert WorkerNode.objects.get().draining


def test_drain_flag_of_another_container_is_ignored(flag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.supervision.device_lock.here", lambda: OTHER)
    heartbeat.set_drain_flag()
    assert heartbeat.is_shutting_down()
    monkeypatch.undo()
    assert not heartbeat.is_shutting_down()
    assert not flag.exists()


def register(place: str) -> None:
    WorkerNode.objects.register("gpu0@host", queue="gpu", host="host", pid=1, place=place)


def make_heartbeat() -> heartbeat.Heartbeat:
    return heartbeat.Heartbeat("gpu0@host", {"queue": "gpu", "host": "host", "pid": 2, "place": MACHINE})


def test_name_that_is_used_elsewhere_gets_a_suffix(db: None) -> None:
    register(OTHER.machine)
    beat = make_heartbeat()
    beat.keep_row()
    assert WorkerNode.objects.count() == 1
    register(OTHER.machine)
    beat.keep_row()
    names = WorkerNode.objects.values_list("name", "place")
    own = f"gpu0@host/{MACHINE.rpartition('/')[2]}"
    assert set(names) == {("gpu0@host", OTHER.machine), (own, MACHINE)}
    assert heartbeat.record_heartbeat("gpu0@host", MACHINE)
    assert heartbeat.row_name("gpu0@host") == own


def test_restart_elsewhere_takes_over_the_row_and_its_pause(db: None) -> None:
    register(OTHER.machine)
    WorkerNode.objects.get().pause(by="Mara")
    beat = make_heartbeat()
    beat.keep_row()
    WorkerNode.objects.update(heartbeat_at=db_now(timedelta(minutes=-1)))
    beat.keep_row()
    row = WorkerNode.objects.get()
    assert (row.name, row.place, row.paused_by) == ("gpu0@host", MACHINE, "Mara")


@pytest.mark.parametrize("place", [MACHINE, ""])
def test_restart_at_the_same_place_keeps_the_row(db: None, place: str) -> None:
    register(place)
    make_heartbeat().keep_row()
    assert WorkerNode.objects.get().pid == 2


def test_two_nodes_that_start_at_once_get_two_rows(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    beat = make_heartbeat()
    beat.keep_row()
    register(OTHER.machine)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0)
    for _round in range(3):
        beat.keep_row()
        register(OTHER.machine)
    assert WorkerNode.objects.count() == 2


def test_pause_of_one_node_leaves_the_other_running(db: None, run: TrainingRun) -> None:
    register(OTHER.machine)
    WorkerNode.objects.get().pause(by="Mara")
    beat = make_heartbeat()
    beat.keep_row()
    register(OTHER.machine)
    beat.keep_row()
    assert Job.objects.claim("gpu", worker="gpu0@host", slot="one", **holder()) is None
    own = heartbeat.row_name("gpu0@host")
    assert Job.objects.claim("gpu", worker=own, slot="other", **holder()) == run.job


def test_job_of_a_killed_pool_process_is_released(
    transactional_db: None, run: TrainingRun, flag: Path
) -> None:
    pool = subprocess.Popen(["sleep", "60"])
    job = claim("gpu")
    Job.objects.filter(pk=job.pk).update(pid=pool.pid, pid_started=birth(pool.pid))
    assert release_orphaned_jobs() == 0
    pool.kill()
    pool.wait()
    heartbeat.Heartbeat("gpu@test", {}, written=time.monotonic()).beat()
    heartbeat._stop.clear()
    job.refresh_from_db()
    assert job.state == State.INTERRUPTED


def test_pool_process_is_not_forked_during_a_query() -> None:
    """The child would inherit SQLite's locks without holding them."""
    begun, ended = threading.Event(), threading.Event()

    def query() -> None:
        with heartbeat.query_lock:
            begun.set()
            time.sleep(0.5)
            ended.set()

    thread = threading.Thread(target=query)
    thread.start()
    begun.wait()
    child = os.fork()
    if not child:
        with heartbeat.query_lock:
            os._exit(0 if ended.is_set() else 1)
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("facts", "unit"),
    [
        ("flags : fpu amx_bf16 avx512_bf16 amx_int8", " with AMX"),
        ("flags : fpu avx512_bf16", " with AVX512-BF16"),
        ("flags : fpu avx512f", ""),
        (None, ""),
    ],
)
def test_device_names_a_unit_for_products_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: str | None, unit: str
) -> None:
    if facts is not None:
        (tmp_path / "cpuinfo").write_text(facts)
    monkeypatch.setattr("workers.supervision.heartbeat.CPU_FACTS", tmp_path / "cpuinfo")
    assert f"cores{unit} (" in heartbeat.describe_device("cpu")["device"]
