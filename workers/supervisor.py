"""The parent side of one attempt: starts the engine child, reads its lines, renews its lease, stops it.

All writes to the database are the parent's and carry the attempt as fence. The child gets its spec through
a pipe and an environment without secrets. Knows nothing of tensors: it executes the engine, never imports it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
from django.conf import settings
from django.db import transaction

from dashboard.models import IllegalMove, Job, State
from dashboard.models.job_state import LIVE
from workers.events import (
    MAX_LINE,
    Bye,
    Event,
    Failure,
    Hello,
    Message,
    Progress,
    ProtocolError,
    from_line,
)
from workers.recorders import Recorder

ENGINE = (sys.executable, "-m", "workers.engine")
RENEW_SECONDS = 10.0
LOOK_SECONDS = 1.0
# How long the last lines of a dead child may take; a process that it left behind can hold the pipe open.
LAST_WORDS_SECONDS = 5.0
GRACE_SECONDS = {"cancel": 20.0, "drain": 45.0}
# Only these reach the child; broker, database and secret key stay with the parent.
PASSED_ON = (
    "PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "SSL_CERT_FILE",
    "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN_PATH", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip


class Fenced(Exception):
    """Another attempt or an end has taken the job away: write nothing more."""


@dataclass(slots=True)
class Child:
    """A running engine process, its queue of parsed lines, and its log."""

    process: subprocess.Popen[bytes]
    lines: queue.Queue[Event | ProtocolError | None] = field(
        default_factory=lambda: queue.Queue(maxsize=10_000)
    )
    stop_asked: float = 0.0

    @classmethod
    def start(cls, job: Job, out_dir: Path, log: IO[bytes]) -> Child:
        """Execute `python -m workers.engine` in its own session and hand it the spec."""
        process = subprocess.Popen(
            [*ENGINE, job.kind, "--checkpoints", str(job.checkpoint_folder()), "-", str(out_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=settings.BASE_DIR,
            env=child_environment(job.kind, out_dir),
            start_new_session=True,
            umask=0o027,
        )
        child = cls(process)
        child._yield_to_the_web()
        threading.Thread(target=child._read, daemon=True).start()
        child.tell({"parent": os.getpid(), "spec": job.spec})
        return child

    def _yield_to_the_web(self) -> None:
        """Lower its priority, and make it the first victim when memory runs out."""
        with contextlib.suppress(OSError, psutil.Error):
            psutil.Process(self.process.pid).nice(5)
            Path(f"/proc/{self.process.pid}/oom_score_adj").write_text("500")

    def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - opened above
        while line := self.process.stdout.readline(MAX_LINE + 1):
            try:
                self.lines.put(from_line(line))
            except ProtocolError as error:
                self.lines.put(error)
        self.lines.put(None)

    def tell(self, message: dict[str, object]) -> None:
        """Send one line; a child that is gone already will be noticed by its exit."""
        assert self.process.stdin is not None  # noqa: S101 - opened above
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def ask_to_stop(self, reason: str) -> None:
        """The line carries the reason, the signal wakes a child that is not reading."""
        self.stop_asked = time.monotonic()
        self.tell({"stop": reason})
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def leave(self) -> int:
        """Wait for the exit of a child that has closed its output; one that lingers is killed."""
        try:
            return self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def kill(self) -> None:
        """End the child and whatever it has started, and wait for it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


def child_environment(kind: str, out_dir: Path) -> dict[str, str]:
    """What the child may know: where to find programs and models, and how many threads to use."""
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    threads = str(settings.ENGINE_THREADS or max(1, len(os.sched_getaffinity(0)) - 1))
    environment |= {
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": os.environ.get("PYTHONDONTWRITEBYTECODE", ""),
        "TMPDIR": str(out_dir),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        # A thread that spins at a barrier takes the core from the web process.
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    }
    if kind in (Job.Kind.TRAIN, Job.Kind.EVALUATE):
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


@dataclass(slots=True)
class Attempt:
    """What one attempt has seen so far."""

    job: Job
    recorder: Recorder
    draining: Callable[[], bool]
    failure: Failure | None = None
    farewell: str = ""
    stop_reason: str = ""
    progress: Progress | None = None
    began_at: int | None = None  # the step from which a training continues
    has_stepped: bool = False

    def take(self, event: Event | ProtocolError) -> None:
        """Note one line of the child."""
        if isinstance(event, ProtocolError):
            self.job.say(f"The engine sent a line that could not be read: {event}", level="warning")
        elif isinstance(event, Hello):
            started = _process_started(event.pid)
            self.job.advance(child_pid=event.pid, child_started=started)
        elif isinstance(event, Progress):
            self.progress = event
            if event.phase == "training" and self.began_at is None:
                self.began_at = event.step
            if self.job.state == State.STARTING:
                # A cancel that came first wins; it is seen at the next look.
                with contextlib.suppress(IllegalMove):
                    self.job.move("progress", actor=self.job.worker, fenced=True)
        elif isinstance(event, Message):
            self.job.say(event.text, level=event.level)
        elif isinstance(event, Failure):
            self.failure = event
        elif isinstance(event, Bye):
            self.farewell = event.reason
        else:
            self.recorder.record(event)

    def look(self, child: Child) -> None:
        """Once a second: write progress and metrics, and see whether somebody wants a stop."""
        self.recorder.flush()
        self.write_progress()
        held = Job.objects.filter(pk=self.job.pk, attempt=self.job.attempt, state__in=LIVE)
        state = held.values_list("state", flat=True).first()
        if state is None:
            raise Fenced
        wanted = "cancel" if state == State.CANCELLING else "drain" if self.draining() else ""
        if wanted and not child.stop_asked:
            self.stop_reason = wanted
            child.ask_to_stop(wanted)

    def write_progress(self) -> None:
        if self.progress is None:
            return
        progress, self.progress = self.progress, None
        fields: dict[str, object] = {"phase": progress.phase, "eta_seconds": progress.eta_seconds}
        # A training job's bar counts optimizer steps only; validation and saving just name themselves.
        if self.job.kind != Job.Kind.TRAIN or progress.phase == "training":
            fields |= {"step": progress.step, "total_steps": progress.total}
            # Steps of earlier attempts do not count: a run that dies right after each start must end.
            if progress.step > (self.began_at or 0) and not self.has_stepped:
                self.has_stepped = True
                fields["fruitless"] = 0
        if not self.job.advance(**fields):
            raise Fenced


def supervise(job: Job, recorder: Recorder, out_dir: Path, draining: Callable[[], bool]) -> None:
    """Run one attempt to its end and write that end. Call it from the main thread of the worker process.

    The parent-death signal of the child is tied to the thread that started it.
    """
    attempt = Attempt(job, recorder, draining)
    with _log(job) as log:
        child = Child.start(job, out_dir, log)
        try:
            _watch(attempt, child)
            _end(attempt, child.leave())
        except Fenced:
            log.write(b"This attempt was taken over or ended elsewhere; nothing more is written.\n")
        finally:
            child.kill()


def _watch(attempt: Attempt, child: Child) -> None:
    """Read lines until the child closes its output or is gone, or overstays its time to stop."""
    last_look = last_renewal = last_seen = time.monotonic()
    while True:
        now = time.monotonic()
        if child.process.poll() is None or not child.lines.empty():
            last_seen = now
        with contextlib.suppress(queue.Empty):
            line = None if now - last_seen > LAST_WORDS_SECONDS else child.lines.get(timeout=0.2)
            if line is None:
                attempt.recorder.flush()
                attempt.write_progress()
                return
            attempt.take(line)
        if now - last_renewal >= RENEW_SECONDS:
            last_renewal = now
            if not attempt.job.renew():
                raise Fenced
        if now - last_look >= LOOK_SECONDS:
            last_look = now
            attempt.look(child)
        if child.stop_asked and now - child.stop_asked > GRACE_SECONDS[attempt.stop_reason]:
            child.kill()
            return


def _end(attempt: Attempt, status: int) -> None:
    """Write the one ending that fits what was seen. A cancel that came before the commit wins."""
    job, worker = attempt.job, attempt.job.worker
    try:
        job.refresh_from_db(fields=["state"])
        if job.state == State.CANCELLING:
            job.move("stopped", actor=worker, fenced=True)
        elif attempt.failure:
            code, message = attempt.failure.code, attempt.failure.message
            with transaction.atomic():
                attempt.recorder.fail(code)
                job.move(
                    "fail", actor=worker, reason=message, fenced=True, error_code=code, error_message=message
                )
        elif attempt.farewell == "done" and status == 0:
            if job.state == State.STARTING:
                job.move("progress", actor=worker, fenced=True)
            attempt.recorder.finish()
        elif attempt.stop_reason == "drain":
            job.interrupt("The worker is shutting down.", actor=worker, blameless=True)
        else:
            job.interrupt(_sudden_end(status), actor=worker)
    except IllegalMove as overtaken:
        job.refresh_from_db(fields=["state"])
        if job.state != State.CANCELLING:
            raise Fenced from overtaken
        job.move("stopped", actor=worker, fenced=True)


def _sudden_end(status: int) -> str:
    if status == -signal.SIGKILL:
        return "The engine was killed, perhaps for lack of memory."
    return f"The engine ended without a word (exit status {status})."


def _process_started(pid: int) -> float | None:
    with contextlib.suppress(psutil.Error):
        return float(psutil.Process(pid).create_time())
    return None


@contextlib.contextmanager
def _log(job: Job) -> Iterator[IO[bytes]]:
    """The job's log file, with a line that says which attempt begins."""
    path = Path(settings.DATA_DIR) / "logs" / f"job-{job.pk}.log"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as log:
        log.write(f"--- attempt {job.attempt} on {job.worker} ---\n".encode())
        yield log
