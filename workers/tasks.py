"""The Celery task: a message wakes a worker, which claims the next job and supervises it.

The message carries a job's id for the log alone: the database decides which job is next.
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

from billiard import current_process
from celery import Task
from celery.signals import worker_process_init
from django.conf import settings
from django.db import transaction

from dashboard.models import IllegalMove, Job, Study
from dashboard.models.operations.data_folder import erase, hide, is_plain_folder
from dashboard.models.operations.retention import delete_checkpoints
from workers.celery import app
from workers.contract.errors import RunError, disk_error
from workers.supervision import device_lock, forked_engine
from workers.supervision.database_outage import DATABASE_AWAY, close_connection
from workers.supervision.device_lock import DeviceBusy
from workers.supervision.engine_process import environment
from workers.supervision.heartbeat import is_draining, row_name
from workers.supervision.judge import judge_answers
from workers.supervision.orphaned_jobs import holder
from workers.supervision.recorders import RECORDERS, fail_job
from workers.supervision.supervisor import supervise

logger = logging.getLogger(__name__)

CLAIM_RETRY_SECONDS = 1.0


@worker_process_init.connect  # type: ignore[untyped-decorator]
def preload_engine(**_kwargs: object) -> None:
    """Start a training node's fork server, so that the first training starts as fast as the others.

    Only the first pool process does: two at once would keep the cores from the site's first minute.
    """
    if Job.Queue.GPU in app.amqp.queues.consume_from and not _pool_index():
        with suppress(OSError):
            forked_engine.server(environment(Job.Kind.TRAIN, Path()))


@app.task(name="workers.tasks.work", bind=True)  # type: ignore[untyped-decorator]
def work(self: Task[[int], None], job_id: int) -> None:
    """Claim and supervise jobs of this node's queue until none waits."""
    queue = str((self.request.delivery_info or {}).get("routing_key"))
    node = str(self.request.hostname)
    job = _wait_and_claim(queue, node)
    if job is None:
        logger.info("woken for job %s, nothing to claim", job_id)
    # One wake-up serves all waiting jobs: the broker may have lost the others.
    while job:
        logger.info("%s: attempt %s begins", job, job.attempt)
        with _drain_on_sigterm() as is_draining_requested:
            attempt(job, is_draining_requested)
            stop = is_draining_requested()
        with suppress(*DATABASE_AWAY, Job.DoesNotExist):
            job.refresh_from_db()
        logger.info("%s: %s", job, job.state)
        close_connection()
        job = None if stop else _claim(queue, node)


def _wait_and_claim(queue: str, node: str) -> Job | None:
    """Claim the next job as soon as this node may take one; None when no job waits any more.

    A node that is paused, or cannot run the waiting jobs, keeps its wake-up meanwhile: by returning for the
    next ones it could take all those that an idle node needs.
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
        slot=device_lock.slot_name(node, _pool_index()) if queue == Job.Queue.GPU else None,
        **holder(),
    )


def _pool_index() -> int:
    """Return the number of this pool process; one that replaces a dead one has its number."""
    return int(getattr(current_process(), "index", 0))


def attempt(job: Job, is_draining_requested: Callable[[], bool]) -> None:
    """Run one attempt in its own work folder, and turn any exception into the job's end."""
    out_dir = Path(settings.DATA_DIR) / "work" / f"job-{job.pk}-{job.attempt}"
    try:
        out_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        if not _start_attempt(job):
            logger.warning("%s was taken over before this attempt began", job)
            return
        _execute(job, out_dir, lambda: is_draining_requested() or is_draining())
    except DATABASE_AWAY:
        logger.exception("%s lost the database", job)
        close_connection()
        _write_end(lambda: _release(job, "The database could not be reached."))
    except DeviceBusy as error:
        reason = str(error)
        _write_end(lambda: _release(job, reason))
    except Exception as error:
        logger.exception("%s failed", job)
        failure = error
        _write_end(lambda: _fail(job, failure))
    finally:
        shutil.rmtree(out_dir, ignore_errors=True)
        _delete_checkpoints(job)
        _advance_study(job)


def _start_attempt(job: Job) -> bool:
    """Return whether the job still belongs to this attempt; the first one deletes leftover checkpoints."""
    folder, hidden = job.checkpoint_folder(), None
    with transaction.atomic():
        # Locks the row, so that no other attempt can take over and write there meanwhile.
        if not job.renew_lease():
            return False
        # A new database counts jobs from 1 again beside the folders of the old one.
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
    if _have_all_arms_ended(job):
        job.move("progress", actor=job.worker, fenced=True)
        recorder.finish()
    else:
        supervise(job, recorder, out_dir, stop)


def _write_end(write: Callable[[], None]) -> None:
    """Write the end of a job; if the database is away, its lease runs out instead."""
    try:
        write()
    except DATABASE_AWAY:
        logger.warning("the end of the job could not be written: the database is away")
        close_connection()


def _delete_checkpoints(job: Job) -> None:
    """Delete the checkpoints that no attempt can continue; the dispatcher repeats it if this fails."""
    folder = job.checkpoint_folder()
    with suppress(*DATABASE_AWAY, OSError):
        if is_plain_folder(folder):
            delete_checkpoints(folder, also=Job.objects.none())


def _advance_study(job: Job) -> None:
    """Advance the job's study; the dispatcher repeats it if this fails."""
    with suppress(*DATABASE_AWAY):
        for study in Study.objects.of_job(job):
            study.advance()


def _have_all_arms_ended(job: Job) -> bool:
    """Return whether an earlier attempt ended every arm but died before it ended the job."""
    outcomes = list(job.training_runs.values_list("outcome", flat=True))
    return bool(outcomes) and all(outcomes)


def _fail(job: Job, error: Exception) -> None:
    code, message = "internal_error", "Graftworks could not finish this job because of an internal error."
    if isinstance(error, RunError):
        code, message = error.code, error.message
    elif full := disk_error(error):
        code, message = full.code, full.message
    try:
        fail_job(job, code, message)
    except IllegalMove:
        _release(job, message)


def _release(job: Job, reason: str) -> None:
    """End a job that was stopping; interrupt any other, so that it is tried again."""
    job.refresh_from_db(fields=["state"])
    try:
        job.recover(reason)
    except IllegalMove:
        logger.warning("%s had ended or was taken over", job)


@contextmanager
def _drain_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Treat SIGTERM as a drain, so that a signal to the whole process group does not kill a run."""
    signals: list[int] = []

    def record(number: int, _frame: FrameType | None) -> None:
        signals.append(number)

    previous = signal.signal(signal.SIGTERM, record)
    try:
        yield lambda: bool(signals)
    finally:
        signal.signal(signal.SIGTERM, previous)
