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
from dashboard.models.data_folder import erase, is_plain_folder, set_aside
from dashboard.models.retention import forget_checkpoint
from workers import slots
from workers.abandoned import holder
from workers.celery import app
from workers.errors import RunError, disk_error
from workers.judging import judge_answers
from workers.node import is_draining, row_name
from workers.outage import AWAY, hang_up
from workers.recorders import RECORDERS
from workers.slots import Occupied
from workers.supervisor import supervise

logger = logging.getLogger(__name__)

REST_SECONDS = 1.0


@app.task(name="workers.tasks.work", bind=True)  # type: ignore[untyped-decorator]
def work(self: Task[[int], None], job_id: int) -> None:
    """Claim the best job of this node's queue and see it to its end. `job_id`: whom the wake-up was for."""
    queue = str((self.request.delivery_info or {}).get("routing_key"))
    node = str(self.request.hostname)
    job = _claim_in_time(queue, node)
    if job is None:
        logger.info("woken for job %s, nothing to claim", job_id)
    # One wake-up is enough for all that waits: the broker may have lost the others.
    while job:
        logger.info("%s: attempt %s begins", job, job.attempt)
        with _drain_on_sigterm() as told_to_stop:
            attempt(job, told_to_stop)
            stop = told_to_stop()
        with suppress(*AWAY, Job.DoesNotExist):
            job.refresh_from_db()
        logger.info("%s: %s", job, job.state)
        hang_up()
        job = None if stop else _claim(queue, node)


def _claim_in_time(queue: str, node: str) -> Job | None:
    """The job whose turn it is, as soon as this node may take one; None where nothing waits any more.

    A node that is paused, or cannot do what waits, keeps its wake-up meanwhile. If it came back for the next
    one, it could swallow all those of an idle neighbour: the broker serves them in turn, each second anew.
    """
    while (job := _claim(queue, node)) is None:
        if is_draining() or not Job.objects.waiting(queue).exists():
            return None
        time.sleep(REST_SECONDS)
    return job


def _claim(queue: str, node: str) -> Job | None:
    """The job whose turn it is; none for a node that shuts down."""
    if is_draining():
        return None
    return Job.objects.claim(
        queue,
        worker=row_name(node),
        slot=slots.name_of(node) if queue == Job.Queue.GPU else None,
        **holder(),
    )


def attempt(job: Job, told_to_stop: Callable[[], bool]) -> None:
    """One attempt in a work folder of its own. The one place where any exception becomes a job's ending."""
    out_dir = Path(settings.DATA_DIR) / "work" / f"job-{job.pk}-{job.attempt}"
    try:
        out_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        if not _begin(job):
            logger.warning("%s was taken over before this attempt began", job)
            return
        _work_off(job, out_dir, lambda: told_to_stop() or is_draining())
    except AWAY:
        # Not the work's fault.
        logger.exception("%s lost the database", job)
        hang_up()
        _leave(lambda: _give_back(job, "The database could not be reached."))
    except Occupied as error:
        occupied = str(error)
        _leave(lambda: _give_back(job, occupied))
    except Exception as error:
        logger.exception("%s failed", job)
        failure = error
        _leave(lambda: _fail(job, failure))
    finally:
        shutil.rmtree(out_dir, ignore_errors=True)
        _forget_checkpoints(job)
        _move_study_on(job)


def _begin(job: Job) -> bool:
    """Whether the job is still this attempt's; the first one begins without checkpoints."""
    folder, hidden = job.checkpoint_folder(), None
    with transaction.atomic():
        # Locks the row, so that whatever lies there is nobody's who took the job over meanwhile.
        if not job.renew_lease():
            return False
        # A database that was set up anew counts from 1 again beside folders of the old one.
        if job.attempt == 1 and is_plain_folder(folder):
            hidden = set_aside(folder)
    if hidden:
        erase(hidden)
    return True


def _work_off(job: Job, out_dir: Path, stop: Callable[[], bool]) -> None:
    """What an attempt does, by the job's kind; all but the judge's calls are an engine's work."""
    if job.kind == Job.Kind.JUDGE:
        judge_answers(job, stop)
        return
    recorder = RECORDERS[Job.Kind(job.kind)](job, out_dir)
    if _is_trained(job):
        job.move("progress", actor=job.worker, fenced=True)
        recorder.finish()
    else:
        supervise(job, recorder, out_dir, stop)


def _leave(write: Callable[[], None]) -> None:
    """Write an ending. Where not even this can be written, the lease runs out."""
    try:
        write()
    except AWAY:
        logger.warning("no ending could be written: the database is away")
        hang_up()


def _forget_checkpoints(job: Job) -> None:
    """Nobody continues a job that ended well or was discarded. What this misses, the dispatcher clears."""
    folder = job.checkpoint_folder()
    with suppress(*AWAY, OSError):
        if is_plain_folder(folder):
            forget_checkpoint(folder, also=Job.objects.none())


def _move_study_on(job: Job) -> None:
    """What a study does next follows from its ended jobs. What this misses, the dispatcher does."""
    with suppress(*AWAY):
        for study in Study.objects.of_job(job):
            study.advance()


def _is_trained(job: Job) -> bool:
    """Whether an earlier attempt ended every arm, and died before it could end the job."""
    outcomes = list(job.training_runs.values_list("outcome", flat=True))
    return bool(outcomes) and all(outcomes)


def _fail(job: Job, error: Exception) -> None:
    code, message = "internal_error", "Graftworks could not finish this job because of a fault of its own."
    if isinstance(error, RunError):
        code, message = error.code, error.message
    elif full := disk_error(error):
        code, message = full.code, full.message
    try:
        job.move(
            "fail", actor=job.worker, reason=message, fenced=True, error_code=code, error_message=message
        )
    except IllegalMove:
        _give_back(job, message)


def _give_back(job: Job, reason: str) -> None:
    """A job that was stopping has stopped, any other may be tried again."""
    job.refresh_from_db(fields=["state"])
    try:
        job.recover(reason)
    except IllegalMove:
        logger.warning("%s had ended or was taken over", job)


@contextmanager
def _drain_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Whoever signals the whole process group must not cut a run in the middle: SIGTERM means drain here."""
    told: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        told.append(number)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: bool(told)
    finally:
        signal.signal(signal.SIGTERM, before)
