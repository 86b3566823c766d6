"""A real Celery worker is stopped or killed: no process outlives it, and no work is lost."""

from __future__ import annotations

import psutil
import pytest
from django.db.models import F
from redis import Redis

from dashboard.management.commands.dispatch import wake
from dashboard.models import BaseModel, Dataset, Job, JobEvent, Project, State, User
from tests.conftest import make_run
from tests.workers.programs import running_worker, wait_until


def is_gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.mark.proof
@pytest.mark.django_db(transaction=True)
def test_engine_ends_with_its_worker_and_the_job_goes_on(
    broker: Redis, real_base: BaseModel, real_dataset: Dataset, project: Project, ed: User
) -> None:
    run = make_run(project, real_dataset, real_base, by=ed, max_steps=100_000)
    job = run.job
    assert job is not None

    def wait_for_step(step: int) -> psutil.Process:
        """Wait until the training is past a step and return its engine."""
        wait_until(lambda: is_past(step), f"step {step}", 90)
        assert job.child_pid is not None
        return psutil.Process(job.child_pid)

    def is_past(step: int) -> bool:
        job.refresh_from_db()
        return job.state == State.RUNNING and job.phase == "training" and job.step > step

    def queue_again() -> None:
        job.refresh_from_db()
        job.requeue_or_fail()
        Job.objects.filter(pk=job.pk).update(run_after=F("created_at"))
        wake(job.pk, job.queue)

    def wait_for_interruption() -> None:
        wait_until(lambda: Job.objects.get(pk=job.pk).state == State.INTERRUPTED, "the job is released", 30)

    # SIGTERM: the engine saves a checkpoint, and the job is released.
    with running_worker() as worker:
        wake(job.pk, job.queue)
        engine = wait_for_step(2)
        worker.terminate()
        worker.wait(timeout=60)
        assert not engine.is_running()
    job.refresh_from_db()
    assert (job.state, job.ignored_attempts, job.failed_attempts) == (State.INTERRUPTED, 1, 0)
    checkpoint = job.checkpoint_step()
    assert checkpoint is not None
    assert checkpoint > 2

    # The main process is killed: the engine dies with it, and the next worker here releases the job.
    with running_worker() as worker:
        queue_again()
        engine = wait_for_step(checkpoint)
        worker.kill()
        wait_until(lambda: is_gone(engine), "the engine's end", 2)
    with running_worker() as worker:
        wait_for_interruption()
        queue_again()
        engine = wait_for_step(checkpoint)
        # The pool process is killed.
        pool = engine.parent()
        assert pool is not None
        assert pool.ppid() == worker.pid
        pool.kill()
        wait_until(lambda: is_gone(engine), "the engine's end", 2)
        wait_for_interruption()
    assert not JobEvent.objects.filter(job=job, to_state=State.FAILED).exists()
