"""The Celery side of the queue: a message wakes a worker, the worker claims the best job and supervises it.

The payload is a job's id and nothing else, and even that is only a hint: the row decides.
"""

from __future__ import annotations

import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from celery import Task
from django.conf import settings
from django.db import transaction

from dashboard.models import IllegalMove, Job, Study
from dashboard.models.operations.data_folder import erase, hide, is_plain_folder
from dashboard.models.operations.retention import delete_checkpoints
from workers.celery import app
from workers.contract.errors import RunError, disk_error
from workers.supervision import device_lock
from workers.supervision.database_outage import DATABASE_AWAY, close_connection
from workers.supervision.device_lock import DeviceBusy
from workers.supervision.heartbeat import is_draining, row_name
from workers.supervision.judge_job import judge_answers
from workers.supervision.orphaned_jobs import holder
from workers.supervision.recorders import RECORDERS
from workers.supervision.supervisor import supervise

logger = logging.getLogger(__name__)

CLAIM_RETRY_SECONDS = 1.0


@app.task(name="workers.tasks.work", bind=True)  # type: ignore[untyped-decorator]
def work(self: Task[[int], None], job_id: int) -> None:
    """Claim the next job of this node's queue and supervise it. `job_id` is only the wake-up's hint."""
    queue = str((self.request.delivery_info or {}).get("routing_key"))
    node = str(self.request.hostname)
    job = _wait_and_claim(queue, node)
    if job is None:
        logger.info("woken for job %s, nothing to claim", job_id)
    # One wake-up is enough for all that waits: the broker may have lost the others.
    while job:
        logger.info("%s: attempt %s begins", job, job.attempt)
        with _drain_on_sigterm() as is_told_to_drain:
            attempt(job, is_told_to_drain)
            stop = is_told_to_drain()
        with suppress(*DATABASE_AWAY, Job.DoesNotExist):
            job.refresh_from_db()
        logger.info("%s: %s", job, job.state)
        close_connection()
        job = None if stop else _claim(queue, node)


def _wait_and_claim(queue: str, node: str) -> Job | None:
    """Claim the next job as soon as this node may take one; None when no job waits any more.

    A node that is paused, or cannot do what waits, keeps its wake-up meanwhile. If it came back for the next
    one, it could swallow all those of an idle neighbour: the broker serves them in turn, each second anew.
    """
    while (job := _claim(queue, node)) is None:
        if is_draining() or not Job.objects.waiting(queue).exists():
            return None
        time.sleep(CLAIM_RETRY_SECONDS)
    return job


def _claim(queue: str, node: str) -> Job | None:
    """Claim the next job, unless this node shuts down."""
    if is_draining():
        return None
    return Job.objects.claim(
        queue,
        worker=row_name(node),
        slot=device_lock.slot_name(node) if queue == Job.Queue.GPU else None,
        **holder(),
    )


def attempt(job: Job, is_told_to_drain: Callable[[], bool]) -> None:
    """Run one attempt in its own work folder. The only place that turns any exception into a job's end."""
    out_dir = Path(settings.DATA_DIR) / "work" / f"job-{job.pk}-{job.attempt}"
    try:
        out_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        if not _start_attempt(job):
            logger.warning("%s was taken over before this attempt began", job)
            return
        _execute(job, out_dir, lambda: is_told_to_drain() or is_draining())
    except DATABASE_AWAY:
        logger.exception("%s lost the database", job)
        close_connection()
        _write_end(lambda: _release(job, "The database could not be reached."))
    except DeviceBusy as error:
        occupied = str(error)
        _write_end(lambda: _release(job, occupied))
    except Exception as error:
        logger.exception("%s failed", job)
        failure = error
        _write_end(lambda: _fail(job, failure))
    finally:
        shutil.rmtree(out_dir, ignore_errors=True)
        _delete_checkpoints(job)
        _advance_study(job)


def _start_attempt(job: Job) -> bool:
    """Return whether the job still belongs to this attempt; the first one starts without checkpoints."""
    folder, hidden = job.checkpoint_folder(), None
    with transaction.atomic():
        # Locks the row: no other attempt can take the job over and write there meanwhile.
        if not job.renew_lease():
            return False
        # A database that was set up anew counts from 1 again beside folders of the old one.
        if job.attempt == 1 and is_plain_folder(folder):
            hidden = hide(folder)
    if hidden:
        erase(hidden)
    return True


def _execute(job: Job, out_dir: Path, stop: Callable[[], bool]) -> None:
    """Execute the job by its kind: the judge's calls here, everything else in an engine."""
    if job.kind == Job.Kind.JUDGE:
        judge_answers(job, stop)
        return
    recorder = RECORDERS[Job.Kind(job.kind)](job, out_dir)
    if _has_only_ended_arms(job):
        job.move("progress", actor=job.worker, fenced=True)
        recorder.finish()
    else:
        supervise(job, recorder, out_dir, stop)


def _write_end(write: Callable[[], None]) -> None:
    """Write an end. If not even this can be written, the lease runs out."""
    try:
        write()
    except DATABASE_AWAY:
        logger.warning("no ending could be written: the database is away")
        close_connection()


def _delete_checkpoints(job: Job) -> None:
    """Delete the checkpoints that no attempt can continue; the dispatcher covers what this misses."""
    folder = job.checkpoint_folder()
    with suppress(*DATABASE_AWAY, OSError):
        if is_plain_folder(folder):
            delete_checkpoints(folder, also=Job.objects.none())


def _advance_study(job: Job) -> None:
    """Advance the job's study; the dispatcher does what this misses."""
    with suppress(*DATABASE_AWAY):
        for study in Study.objects.of_job(job):
            study.advance()


def _has_only_ended_arms(job: Job) -> bool:
    """Return whether an earlier attempt ended every arm, and died before it could end the job."""
    outcomes = list(job.training_runs.values_list("outcome", flat=True))
    return bool(outcomes) and all(outcomes)


def _fail(job: Job, error: Exception) -> None:
    code, message = "internal_error", "Graftworks could not finish this job because of an internal error."
    if isinstance(error, RunError):
        code, message = error.code, error.message
    elif full := disk_error(error):
        code, message = full.code, full.message
    try:
        job.move(
            "fail", actor=job.worker, reason=message, fenced=True, error_code=code, error_message=message
        )
    except IllegalMove:
        _release(job, message)


def _release(job: Job, reason: str) -> None:
    """End a job that was stopping; interrupt any other, to be tried again."""
    job.refresh_from_db(fields=["state"])
    try:
        job.recover(reason)
    except IllegalMove:
        logger.warning("%s had ended or was taken over", job)


@contextmanager
def _drain_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Treat SIGTERM as a drain: a signal to the whole process group must not cut a run in the middle."""
    signals: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        signals.append(number)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: bool(signals)
    finally:
        signal.signal(signal.SIGTERM, before)
