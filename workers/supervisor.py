"""The parent side of one attempt: writes down what the engine says, keeps the lease, passes on stops.

All writes to the database are the parent's and carry the attempt as fence. While the database is away the
child works on, its lines wait in order, and whatever is written must bear being written twice. Knows nothing
of tensors: it executes the engine, never imports it.
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
from dashboard.models.adjustments import use_smaller_batches
from dashboard.models.stopping import arms_to_stop
from workers import slots
from workers.child import Child
from workers.errors import OutOfMemory
from workers.events import Failure, Finished, Message, Progress, ProtocolError, Started, from_line
from workers.identity import birth
from workers.outage import Database
from workers.recorders import Recorder, stop_at_the_end

logger = logging.getLogger(__name__)

RENEW_SECONDS = 10.0
LOOK_SECONDS = 1.0
WAIT_SECONDS = 0.2
# A longer turn than this means that this process was stopped, or the machine slept.
PAUSE_SECONDS = 60.0
# Why a child is asked to stop, the stronger reason last; and how long it may take.
GRACE_SECONDS = {"drain": 45.0, "finish": 45.0, "park": 45.0, "cancel": 20.0}
RANK = ("", *GRACE_SECONDS)
# After so long without a database the work is put aside.
OUTAGE_SECONDS = 15 * 60.0
# No progress for so long, or for so many times the usual, is worth a warning; for twice as long, an end.
STALL_SECONDS = 15 * 60.0
STALL_PACES = 10
SUSPECTED = "oom_suspected"
DRAINED_BY_OTHERS = "Something outside Graftworks asked the engine to stop, and it did so in order."
PUT_ASIDE = "The worker is shutting down."


class Fenced(Exception):
    """Another attempt or an end has taken the job away: write nothing more."""


class DatabaseLost(Exception):
    """The database stayed away for too long: nothing more can be written, and the lease runs out."""


@dataclass(slots=True)
class Attempt:
    """What one attempt has seen so far, and what of it still has to be written."""

    job: Job
    recorder: Recorder
    draining: Callable[[], bool]
    database: Database = field(default_factory=Database)
    renewed: float = field(default_factory=time.monotonic)
    looked: float = field(default_factory=time.monotonic)
    failure: Failure | None = None
    farewell: str = ""
    stop_reason: str = ""
    wanted: str = ""  # what the row asks for
    arms_to_stop: dict[int, str] = field(default_factory=dict)  # what its runs' rows ask for
    is_lost: bool = False  # the database, for too long
    is_stalled: bool = False
    is_warned: bool = False
    progress: Progress | None = None
    began_at: int | None = None  # the step from which a training continues
    is_shown: bool = False  # that it trains, to whoever reads its row
    has_stepped: bool = False
    pressed: float = 0.0  # since when it may not take its time any more

    def write_down(self, child: Child) -> None:
        """Take what the child has said, keep the lease, and see what the row asks for. Bears repetition."""
        if self.database.since:
            self._come_back()
        began = time.monotonic()
        # No longer than a look's time at once, however much an outage has left to write.
        while (line := child.lines.first()) and time.monotonic() - began < LOOK_SECONDS:
            self.take(line)
            child.lines.drop()
        now = time.monotonic()
        if now - self.renewed >= RENEW_SECONDS:
            self._renew()
        if now - self.looked >= LOOK_SECONDS:
            self.looked = now
            self.flush()
            self._look()

    def _look(self) -> None:
        wanted = self.job.read_stop_request()
        if wanted is None:
            raise Fenced
        self.wanted, self.arms_to_stop = wanted, arms_to_stop(self.job)

    def _come_back(self) -> None:
        """The lease may have run out meanwhile, and a move that was not committed has left a wrong state."""
        self._renew()
        self.job.refresh_from_db(fields=["state"])

    def _renew(self) -> None:
        if not self.job.renew_lease():
            raise Fenced
        self.renewed = time.monotonic()

    def stay_alive(self, child: Child) -> None:
        """Between two pieces of what takes long: nobody else takes the job, and the child hears of a stop."""
        now = time.monotonic()
        if now - self.renewed >= RENEW_SECONDS:
            self._renew()
            self.database.answered()
        if now - self.looked >= LOOK_SECONDS:
            self.looked = now
            self._look()
            self.stop_where_wanted(child)

    def flush(self) -> None:
        """Write the newest progress and the batched metrics: a curve is never ahead of its row."""
        self.write_progress()
        self.recorder.flush()

    def take(self, line: bytes) -> None:
        """Note one line of the child."""
        try:
            event = from_line(line)
        except ProtocolError as error:
            self._say(f"The engine sent a line that could not be read: {error}", level="warning")
            return
        if isinstance(event, Started):
            self.job.update_progress(child_pid=event.pid, child_started=birth(event.pid))
        elif isinstance(event, Progress):
            self.progress = event
            if event.phase == "training" and not self.is_shown:
                self.began_at = event.step
                # Before its first point is stored: who sees a curve may ask to keep what it shows.
                self.write_progress()
                self.is_shown = True
            if self.job.state == State.STARTING:
                # A cancel that came first wins; it is seen at the next look.
                with contextlib.suppress(IllegalMove):
                    self.job.move("progress", actor=self.job.worker, fenced=True)
        elif isinstance(event, Message):
            self._say(event.text, level=event.level)
        elif isinstance(event, Failure):
            self.failure = event
        elif isinstance(event, Finished):
            self.farewell = event.reason
        else:
            self.recorder.record(event)

    def _say(self, text: str, level: str) -> None:
        if not self.job.add_message(text, level):
            raise Fenced

    def write_progress(self) -> None:
        progress = self.progress
        if progress is None:
            return
        fields: dict[str, object] = {"phase": progress.phase, "eta_seconds": progress.eta_seconds}
        has_stepped, trains = self.has_stepped, self.job.kind == Job.Kind.TRAIN
        # A training job's bar counts optimizer steps only; validation and saving just name themselves.
        if not trains or progress.phase == "training":
            fields |= {"step": progress.step, "total_steps": progress.total}
            # Only a training goes on where it stood. Steps of earlier attempts do not count: a run that dies
            # right after each start must end.
            if trains and progress.step > (self.began_at or 0) and not has_stepped:
                has_stepped = True
                fields["failed_attempts"] = 0
        if not self.job.update_progress(**fields):
            raise Fenced
        self.progress, self.has_stepped = None, has_stepped

    def stop_where_wanted(self, child: Child) -> None:
        """Ask the child to stop for the strongest reason there is, or some of its arms; needs no database."""
        child.ask_arms_to_stop(self.arms_to_stop)
        self.is_lost = self.is_lost or self.database.seconds_away > OUTAGE_SECONDS
        wanted = max(self.wanted, "drain" if self.is_lost or self.draining() else "", key=RANK.index)
        if RANK.index(wanted) > RANK.index(self.stop_reason):
            self.stop_reason = wanted
            child.ask_to_stop(wanted)
        if self.stop_reason and not self.takes_its_time:
            self.pressed = self.pressed or time.monotonic()

    @property
    def takes_its_time(self) -> bool:
        """Whether a child saves its best and nobody waits for the worker: what is kept is worth the time.

        It may have to load first, or to end a long step, and several arms are saved one after the other.
        """
        return self.stop_reason == "finish" and not (self.is_lost or self.draining())

    def has_overstayed(self, child: Child) -> bool:
        """Whether the time to stop is over, for the child and for what is still to be written."""
        if not self.stop_reason or self.takes_its_time:
            return False
        began = max(child.stop_asked, self.pressed)
        return time.monotonic() - began > GRACE_SECONDS[self.stop_reason]

    def watch_progress(self, child: Child) -> None:
        """Warn about a child that stands still, then end it. One that has to hurry has its own limit."""
        if (self.stop_reason and not self.takes_its_time) or child.has_ended:
            return
        limit = max(STALL_SECONDS, STALL_PACES * child.pace)
        silent = time.monotonic() - child.progress_at
        if silent > 2 * limit:
            self.is_stalled = True
            child.kill()
        elif silent <= limit:
            self.is_warned = False
        elif not self.is_warned:
            self.is_warned = self.database.try_to(
                lambda: self.job.add_message(
                    f"There was no progress for {limit / 60:.0f} minutes. After {2 * limit / 60:.0f} minutes "
                    "this attempt is ended and the work is tried again.",
                    level="warning",
                )
            )


def supervise(job: Job, recorder: Recorder, out_dir: Path, draining: Callable[[], bool]) -> None:
    """Run one attempt to its end and write that end. Call it from the main thread of the worker process.

    The parent-death signal of the child is tied to the thread that started it.
    """
    attempt = Attempt(job, recorder, draining)
    with _log(job) as log, _slot(job) as occupy, attempt.database.watched():
        child = Child.start(job, out_dir, log)
        recorder.alive = lambda: attempt.stay_alive(child)
        try:
            occupy(child.process.pid)
            _watch(attempt, child)
            status = child.leave()
            _write(attempt, child, lambda: _end(attempt, child, status))
        except Fenced:
            child.note("This attempt was taken over or ended elsewhere; nothing more is written.")
        except DatabaseLost:
            child.note("The database was away for too long; this attempt ends, its checkpoints stay.")
            logger.warning("%s is left to its lease: the database is away", job)
        finally:
            child.kill()
            child.lines.discard()


def _watch(attempt: Attempt, child: Child) -> None:
    """Until the child has ended and its lines are written; one that overstays its time to stop is ended."""
    last_turn = time.monotonic()
    while True:
        if attempt.database.since:
            time.sleep(WAIT_SECONDS)
        else:
            child.lines.wait(WAIT_SECONDS)
        if time.monotonic() - last_turn > PAUSE_SECONDS:
            child.progress_at = time.monotonic()
        last_turn = time.monotonic()
        # Asked before the writing, so that nothing is said between the two.
        has_ended = child.has_ended
        child.kills.look()
        attempt.database.try_to(lambda: attempt.write_down(child))
        attempt.stop_where_wanted(child)
        attempt.watch_progress(child)
        if has_ended and child.lines.first() is None:
            _write(attempt, child, attempt.flush)
            return
        if has_ended:
            _give_up_where_lost(attempt, child)
        elif attempt.has_overstayed(child) and child.process.poll() is None:
            child.kill()


def _give_up_where_lost(attempt: Attempt, child: Child) -> None:
    """Nobody waits for the database longer than the work itself may."""
    is_too_long = attempt.is_lost or attempt.has_overstayed(child)
    if attempt.database.since and is_too_long:
        raise DatabaseLost


def _write(attempt: Attempt, child: Child, write: Callable[[], None]) -> None:
    """Write, waiting for the database where it is away; the child has ended."""

    def write_as_holder() -> None:
        if attempt.database.since:
            attempt._come_back()
        write()

    while not attempt.database.try_to(write_as_holder):
        attempt.stop_where_wanted(child)
        _give_up_where_lost(attempt, child)
        time.sleep(WAIT_SECONDS)


def _end(attempt: Attempt, child: Child, status: int) -> None:
    """Write the one ending that fits what was seen. A cancel that came before the commit wins."""
    job, worker = attempt.job, attempt.job.worker
    try:
        job.refresh_from_db(fields=["state"])
        if job.state == State.CANCELLING:
            job.complete_stop(actor=worker)
        elif attempt.failure:
            _fail(attempt, attempt.failure)
        elif attempt.farewell == "done" and status == 0:
            if job.state == State.STARTING:
                job.move("progress", actor=worker, fenced=True)
            attempt.recorder.finish()
        elif (attempt.stop_reason, attempt.farewell) == ("finish", "cancel"):
            # Asked to keep the best before there was any: what remains is a stop.
            stop_at_the_end(job, "Nothing had been learned yet, so there is nothing to keep.")
        elif attempt.farewell == "taken_over":
            # Only a database that was put back from a copy still takes this attempt for the newest.
            reason = "A later attempt had taken over the checkpoints of this training."
            job.interrupt(reason, actor=worker, counts_as_failure=False)
        elif attempt.is_stalled:
            job.interrupt("It stood still for too long, so this attempt was ended.", actor=worker)
        elif attempt.pressed:
            reason = PUT_ASIDE
            if attempt.is_lost:
                reason = f"The database could not be reached for {OUTAGE_SECONDS / 60:.0f} minutes."
            job.interrupt(reason, actor=worker, counts_as_failure=False)
        elif attempt.farewell == "drain":
            # A signal to the engine alone, which it obeys as it would a worker that shuts down.
            job.interrupt(DRAINED_BY_OTHERS, actor=worker, counts_as_failure=False)
        elif status == -signal.SIGKILL and not child.was_killed:
            _explain_kill(attempt, for_memory=child.kills.blame)
        else:
            reason = f"The engine ended without a word (exit status {status})."
            job.interrupt(reason, actor=worker)
    except IllegalMove as overtaken:
        job.refresh_from_db(fields=["state"])
        if job.state != State.CANCELLING:
            raise Fenced from overtaken
        job.complete_stop(actor=worker)


def _fail(attempt: Attempt, failure: Failure) -> None:
    """The engine said why it cannot go on. Too little memory is tried once more, with a smaller batch."""
    job, code, message = attempt.job, failure.code, failure.message
    with transaction.atomic():
        attempt.recorder.fail(code)
        if code == OutOfMemory.code and job.kind == Job.Kind.TRAIN:
            change = use_smaller_batches(job, code)
            if change:
                job.interrupt(f"{message} {change}", actor=job.worker, counts_as_failure=False)
                return
        job.move(
            "fail", actor=job.worker, reason=message, fenced=True, error_code=code, error_message=message
        )


def _explain_kill(attempt: Attempt, *, for_memory: bool | None) -> None:
    """Nobody here has killed the engine. Where no count says who did, the first time is only suspicious."""
    job = attempt.job
    if for_memory:
        message = "The machine had no memory left, so its kernel ended the engine."
        _fail(attempt, Failure(OutOfMemory.code, message))
    elif for_memory is False:
        job.interrupt("Something outside Graftworks killed the engine.", actor=job.worker)
    elif job.suspected_cause != SUSPECTED or attempt.has_stepped:
        reason = "The engine was killed, perhaps for lack of memory."
        job.interrupt(reason, actor=job.worker, suspected_cause=SUSPECTED)
    else:
        message = "The engine was killed twice before it got on, most likely for lack of memory."
        _fail(attempt, Failure(OutOfMemory.code, message))


@contextlib.contextmanager
def _slot(job: Job) -> Iterator[Callable[[int], None]]:
    """The job's device, free of an earlier attempt's process; what it yields notes whose it is now."""
    if job.slot is None:
        yield lambda _pid: None
        return
    slot = job.slot
    if pid := slots.vacate(slot):
        job.add_message(
            f"Ended process {pid}, which an earlier attempt had left on this device.", level="warning"
        )
    try:
        yield lambda pid: slots.occupy(slot, pid)
    finally:
        slots.leave(slot)


@contextlib.contextmanager
def _log(job: Job) -> Iterator[IO[bytes]]:
    """The job's log file, with a line that says which attempt begins."""
    path = Path(settings.DATA_DIR) / "logs" / f"job-{job.pk}.log"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as log:
        # A full disk may cost the line, never the job.
        with contextlib.suppress(OSError):
            log.write(f"--- attempt {job.attempt} on {job.worker} ---\n".encode())
        yield log
