"""Supervise one attempt of a job: write the engine's events, renew the lease, and pass on stops.

All writes to the database are the supervisor's and carry the attempt as fence. During an outage of the
database the engine works on and its lines wait in order, so every write must be repeatable. Knows nothing of
tensors: it executes the engine and never imports it.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from django.conf import settings
from django.db import transaction

from dashboard.models import IllegalMove, Job, State
from dashboard.models.jobs.adjustments import use_smaller_batches
from workers.contract.errors import OutOfMemory
from workers.contract.events import Failure, Finished, Message, Progress, ProtocolError, Started, from_line
from workers.supervision import device_lock
from workers.supervision.database_outage import Database
from workers.supervision.engine_process import EngineProcess
from workers.supervision.process_identity import birth
from workers.supervision.recorders import Recorder, cancel_without_result, fail_job
from workers.supervision.stop_policy import OUTAGE_SECONDS, StopPolicy

logger = logging.getLogger(__name__)

RENEW_SECONDS = 10.0
POLL_SECONDS = 1.0
WAIT_SECONDS = 0.2
# Limit without progress, in seconds and in usual steps: then a warning, and after twice as long a kill.
STALL_SECONDS = 15 * 60.0
STALL_STEPS = 10
WORKER_SHUTS_DOWN = "The worker is shutting down."
STOPPED_FROM_OUTSIDE = "The engine was stopped by a signal from outside Graftworks."


class Fenced(Exception):
    """The job has ended or belongs to another attempt: write nothing more."""


class DatabaseLost(Exception):
    """The outage of the database is too long: nothing more can be written, and the lease runs out."""


@dataclass(slots=True)
class Attempt:
    """The state of one attempt, with the progress that is not yet written."""

    job: Job
    recorder: Recorder
    stop: StopPolicy
    database: Database
    lease_renewed: float = field(default_factory=time.monotonic)
    row_polled: float = field(default_factory=time.monotonic)
    failure: Failure | None = None
    finished: str = ""  # the reason in the engine's last line
    progress: Progress | None = None  # not yet written
    first_step: int | None = None  # from which a training continues
    has_stepped: bool = False
    has_stalled: bool = False
    is_stall_warned: bool = False

    @classmethod
    def of(cls, job: Job, recorder: Recorder, is_draining: Callable[[], bool]) -> Attempt:
        database = Database()
        return cls(job, recorder, StopPolicy(database, is_draining), database)

    def write_events(self, engine: EngineProcess) -> None:
        """Write the engine's lines, renew the lease, and read the row's stop request. Repeatable."""
        self.resume_after_outage()
        started = time.monotonic()
        # At most for one poll interval, however many lines an outage has left.
        while (line := engine.lines.first()) and time.monotonic() - started < POLL_SECONDS:
            self.handle(line)
            engine.lines.drop()
        self._renew_lease_when_due()
        if self._is_poll_due():
            self.flush()
            self._read_stop_request()

    def keep_lease(self, engine: EngineProcess) -> None:
        """Renew the lease and pass on a stop between two pieces of a long write."""
        if self._renew_lease_when_due():
            self.database.note_answer()
        if self._is_poll_due():
            self._read_stop_request()
            self.pass_on_stop(engine)

    def pass_on_stop(self, engine: EngineProcess) -> None:
        """Send the engine a stop that is stronger than the one before."""
        if reason := self.stop.update():
            engine.request_stop(reason)

    def resume_after_outage(self) -> None:
        """Renew the lease, which may have run out, and re-read a state whose change was not committed."""
        if self.database.is_away:
            self._renew_lease()
            self.job.refresh_from_db(fields=["state"])

    def _renew_lease_when_due(self) -> bool:
        is_due = time.monotonic() - self.lease_renewed >= RENEW_SECONDS
        if is_due:
            self._renew_lease()
        return is_due

    def _renew_lease(self) -> None:
        if not self.job.renew_lease():
            raise Fenced
        self.lease_renewed = time.monotonic()

    def _is_poll_due(self) -> bool:
        is_due = time.monotonic() - self.row_polled >= POLL_SECONDS
        if is_due:
            self.row_polled = time.monotonic()
        return is_due

    def _read_stop_request(self) -> None:
        requested = self.job.read_stop_request()
        if requested is None:
            raise Fenced
        self.stop.requested = requested

    def handle(self, line: bytes) -> None:
        """Handle one line of the engine."""
        try:
            event = from_line(line)
        except ProtocolError as error:
            self._add_message(f"The engine sent a line that could not be read: {error}", level="warning")
            return
        if isinstance(event, Started):
            self.job.update_progress(child_pid=event.pid, child_started=birth(event.pid))
        elif isinstance(event, Progress):
            self._handle_progress(event)
        elif isinstance(event, Message):
            self._add_message(event.text, level=event.level)
        elif isinstance(event, Failure):
            self.failure = event
        elif isinstance(event, Finished):
            self.finished = event.reason
        else:
            self.recorder.record(event)

    def _handle_progress(self, progress: Progress) -> None:
        self.progress = progress
        if progress.phase == "training" and self.first_step is None:
            # Written before the first metrics: a user who sees a curve may stop the run and keep its best.
            self.write_progress(first_step=progress.step)
            self.first_step = progress.step
        if self.job.state == State.STARTING:
            # A cancel that came first wins; it is seen at the next poll.
            with contextlib.suppress(IllegalMove):
                self.job.move("progress", actor=self.job.worker, fenced=True)

    def _add_message(self, text: str, level: str) -> None:
        # The database may have stored the last message before an outage without answering.
        if self.database.is_away and self.job.newest_message() == text:
            return
        if not self.job.add_message(text, level):
            raise Fenced

    def flush(self) -> None:
        """Write the newest progress, then the batched metrics: a curve is never ahead of its row."""
        self.write_progress(self.first_step or 0)
        self.recorder.flush()

    def write_progress(self, first_step: int) -> None:
        """Write the newest progress. The first step of a training ends its row of failed attempts."""
        progress = self.progress
        if progress is None:
            return
        fields: dict[str, object] = {"phase": progress.phase, "eta_seconds": progress.eta_seconds}
        has_stepped, is_training = self.has_stepped, self.job.kind == Job.Kind.TRAIN
        # A training's bar counts optimizer steps only; validation and saving just name themselves.
        if not is_training or progress.phase == "training":
            fields |= {"step": progress.step, "total_steps": progress.total}
            # Steps of earlier attempts do not count: a run that dies right after each start must end.
            if is_training and progress.step > first_step and not has_stepped:
                has_stepped = True
                fields["failed_attempts"] = 0
        if not self.job.update_progress(**fields):
            raise Fenced
        self.progress, self.has_stepped = None, has_stepped

    def check_progress(self, engine: EngineProcess) -> None:
        """Warn about an engine without progress, then kill it. A stop has a grace period of its own."""
        if (self.stop.reason and not self.stop.grace_unlimited) or engine.has_ended:
            return
        limit = max(STALL_SECONDS, STALL_STEPS * engine.seconds_per_step)
        silent = time.monotonic() - engine.last_progress
        if silent > 2 * limit:
            self.has_stalled = True
            engine.kill()
        elif silent <= limit:
            self.is_stall_warned = False
        elif not self.is_stall_warned:
            warning = (
                f"There was no progress for {limit / 60:.0f} minutes. After {2 * limit / 60:.0f} minutes "
                "this attempt is ended and the work is tried again."
            )
            self.is_stall_warned = self.database.try_write(
                lambda: self.job.add_message(warning, level="warning")
            )


def supervise(job: Job, recorder: Recorder, out_dir: Path, is_draining: Callable[[], bool]) -> None:
    """Run one attempt to its end and write that end. Call it from the main thread of the worker process.

    The parent-death signal of the engine is tied to the thread that started it.
    """
    attempt = Attempt.of(job, recorder, is_draining)
    with _open_log(job) as log, _device_lock(job) as record_pid, attempt.database.watched():
        engine = EngineProcess.start(job, out_dir, log)
        recorder.keep_lease = lambda: attempt.keep_lease(engine)
        try:
            record_pid(engine.process.pid)
            _follow(attempt, engine)
            status = engine.wait()
            _write_after_exit(attempt, lambda: _write_end(attempt, engine, status))
        except Fenced:
            engine.write_log("This attempt was taken over or its job has ended; nothing more is written.")
        except DatabaseLost:
            engine.write_log(
                "The database was away for too long. This attempt ends and keeps its checkpoints."
            )
            logger.warning("%s is left to its lease: the database is away", job)
        finally:
            engine.kill()


def _follow(attempt: Attempt, engine: EngineProcess) -> None:
    """Follow the engine until it has ended and its lines are written; kill it when its grace has expired."""
    while True:
        if attempt.database.is_away:
            time.sleep(WAIT_SECONDS)
        else:
            engine.lines.wait(WAIT_SECONDS)
        # Read before the write, so that no line arrives between the two.
        has_ended = engine.has_ended
        attempt.database.try_write(lambda: attempt.write_events(engine))
        attempt.pass_on_stop(engine)
        attempt.check_progress(engine)
        if has_ended and engine.lines.first() is None:
            _write_after_exit(attempt, attempt.flush)
            return
        if has_ended:
            _raise_if_database_lost(attempt)
        elif attempt.stop.grace_expired and engine.process.poll() is None:
            engine.kill()


def _write_after_exit(attempt: Attempt, write: Callable[[], None]) -> None:
    """Write, and wait for the database while it is away."""

    def write_as_holder() -> None:
        attempt.resume_after_outage()
        write()

    while not attempt.database.try_write(write_as_holder):
        attempt.stop.update()
        _raise_if_database_lost(attempt)
        time.sleep(WAIT_SECONDS)


def _raise_if_database_lost(attempt: Attempt) -> None:
    """Raise DatabaseLost if the outage is too long, or the grace period is over."""
    stop = attempt.stop
    if attempt.database.is_away and (stop.database_lost or stop.grace_expired):
        raise DatabaseLost


def _write_end(attempt: Attempt, engine: EngineProcess, status: int) -> None:
    """Write the end of the attempt. A cancel that came before the commit wins."""
    job = attempt.job
    try:
        job.refresh_from_db(fields=["state"])
        if job.state == State.CANCELLING:
            job.complete_stop(actor=job.worker)
        elif attempt.failure:
            _fail(attempt, attempt.failure)
        elif attempt.finished == "done" and status == 0:
            if job.state == State.STARTING:
                job.move("progress", actor=job.worker, fenced=True)
            attempt.recorder.finish()
        elif (attempt.stop.reason, attempt.finished) == ("finish", "cancel"):
            # Stopped before the first checkpoint: treat as cancelled.
            cancel_without_result(job)
        elif engine.has_oom_kill and status == -signal.SIGKILL and not engine.was_killed:
            message = "The machine ran out of memory, so its kernel killed the engine."
            _fail(attempt, Failure(OutOfMemory.code, message))
        else:
            reason, counts_as_failure = _interruption(attempt, engine, status)
            job.interrupt(reason, actor=job.worker, counts_as_failure=counts_as_failure)
    except IllegalMove as overtaken:
        job.refresh_from_db(fields=["state"])
        if job.state != State.CANCELLING:
            raise Fenced from overtaken
        job.complete_stop(actor=job.worker)


def _interruption(attempt: Attempt, engine: EngineProcess, status: int) -> tuple[str, bool]:
    """Return why the attempt was interrupted, and whether it counts as a failed one."""
    if attempt.finished == "taken_over":
        # Only a database that was restored from a backup still takes this attempt for the newest.
        return "A later attempt had taken over the checkpoints of this training.", False
    if attempt.has_stalled:
        return "The engine made no progress for too long, so this attempt was ended.", True
    if attempt.stop.database_lost:
        return f"The database could not be reached for {OUTAGE_SECONDS / 60:.0f} minutes.", False
    if attempt.stop.grace_started:
        return WORKER_SHUTS_DOWN, False
    if attempt.finished == "drain":
        # Somebody sent the signal to the engine alone.
        return STOPPED_FROM_OUTSIDE, False
    if status == -signal.SIGKILL and not engine.was_killed:
        return "The engine was killed from outside Graftworks.", True
    return f"The engine ended without a report (exit status {status}).", True


def _fail(attempt: Attempt, failure: Failure) -> None:
    """Write the engine's failure. One without enough memory is tried again with a smaller batch."""
    job, code, message = attempt.job, failure.code, failure.message
    with transaction.atomic():
        attempt.recorder.record_failure()
        if code == OutOfMemory.code and job.kind == Job.Kind.TRAIN:
            change = use_smaller_batches(job, code)
            if change:
                job.interrupt(f"{message} {change}", actor=job.worker, counts_as_failure=False)
                return
        fail_job(job, code, message)


@contextlib.contextmanager
def _device_lock(job: Job) -> Iterator[Callable[[int], None]]:
    """Kill the process that an earlier attempt left on the device; yield a function to record the new one."""
    if job.slot is None:
        yield lambda _pid: None
        return
    slot = job.slot
    if pid := device_lock.clear(slot):
        job.add_message(
            f"Killed process {pid}, which an earlier attempt had left on this device.", level="warning"
        )
    try:
        yield lambda pid: device_lock.acquire(slot, pid)
    finally:
        device_lock.release(slot)


@contextlib.contextmanager
def _open_log(job: Job) -> Iterator[IO[bytes]]:
    """Open the job's log file, and write a line for this attempt."""
    path = Path(settings.DATA_DIR) / "logs" / f"job-{job.pk}.log"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as log:
        # On a full disk the line is lost, not the job.
        with contextlib.suppress(OSError):
            log.write(f"--- attempt {job.attempt} on {job.worker} ---\n".encode())
        yield log
