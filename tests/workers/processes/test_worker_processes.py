"""A real Celery worker with a real broker, told to end or killed: what its processes leave behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from django.conf import settings
from django.db import connection
from django.db.models import F
from redis import Redis

from dashboard.management.commands.dispatch import wake
from dashboard.models import BaseModel, Dataset, Job, JobEvent, Project, State, User
from tests.conftest import make_run
from tests.workers.programs import WORKER


def address() -> str:
    """The test database, as a worker is told of it."""
    known = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{known['NAME']}"
    login = f"{known['USER']}:{quote(known['PASSWORD'])}"
    return f"postgres://{login}@{known['HOST']}:{known['PORT']}/{known['NAME']}"


@contextlib.contextmanager
def worker() -> Iterator[psutil.Process]:
    """The node's main process; gone with everything below it afterwards."""
    environment = {**os.environ, "DATABASE_URL": address(), "REDIS_URL": settings.REDIS_URL}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (Path(settings.DATA_DIR) / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            WORKER, env=environment, cwd=settings.BASE_DIR, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(holds: Callable[[], bool], what: str, seconds: float = 90) -> float:
    """Wait for it; how long it took."""
    began = time.monotonic()
    while not holds():
        log = (Path(settings.DATA_DIR) / "worker.log").read_text()
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds} s\n{log[-4000:]}"
        time.sleep(0.05)
    return time.monotonic() - began


def is_gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_no_process_outlives_its_worker_and_no_work_is_lost(
    broker: Redis, real_base: BaseModel, real_dataset: Dataset, project: Project, ed: User
) -> None:
    run = make_run(project, real_dataset, real_base, by=ed, max_steps=100_000)
    job = run.job
    assert job is not None

    def is_past(step: int) -> bool:
        job.refresh_from_db()
        return job.state == State.RUNNING and job.phase == "training" and job.step > step

    def child() -> psutil.Process:
        job.refresh_from_db()
        assert job.child_pid is not None
        return psutil.Process(job.child_pid)

    def queue_again() -> None:
        job.refresh_from_db()
        job.requeue_or_fail()
        Job.objects.filter(pk=job.pk).update(run_after=F("created_at"))
        wake(job)

    # Told to end: a checkpoint, then the job is given back.
    with worker() as main:
        wake(job)
        until(lambda: is_past(2), "training")
        engine = child()
        main.terminate()
        took = until(lambda: is_gone(main), "the end", 60)
        assert not engine.is_running()
    job.refresh_from_db()
    assert (job.state, job.ignored_attempts, job.failed_attempts) == (State.INTERRUPTED, 1, 0)
    stopped_at = job.checkpoint_step()
    assert stopped_at is not None
    assert stopped_at > 2

    # The main process is killed: the engine dies with it, and the next worker of this machine goes on.
    with worker() as main:
        queue_again()
        until(lambda: is_past(stopped_at), "going on")
        engine = child()
        main.kill()
        died = until(
            lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, "its death", 10
        )
    assert died < 2
    with worker() as main:
        until(lambda: Job.objects.get(pk=job.pk).state == State.INTERRUPTED, "being given back")
        queue_again()
        until(lambda: is_past(stopped_at), "going on")
        # The pool process is killed.
        engine = child()
        pool = engine.parent()
        assert pool is not None
        assert pool.parent() == main
        pool.kill()
        died = until(
            lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, "its death", 10
        )
        assert died < 2
        until(lambda: Job.objects.get(pk=job.pk).state == State.INTERRUPTED, "being given back", 20)
    assert not JobEvent.objects.filter(job=job, to_state=State.FAILED).exists()
    print(f"stopped in {took:.1f} s at step {stopped_at}")
