"""The engine as a process: how it is started, what it may know, how it is asked to stop, and how it is ended.

Knows nothing of the database, and of an event only whether it is a sign of progress.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import psutil
from django.conf import settings

from dashboard.models import Job
from dashboard.models.stopping import arms_to_stop
from workers.events import MAX_LINE
from workers.kernel_kills import Kills
from workers.spool import Spool

ENGINE = (sys.executable, "-m", "workers.engine")
# How long the last lines of a dead child may take; a process that it left behind can hold the pipe open.
LAST_WORDS_SECONDS = 5.0
LEAVE_SECONDS = 10.0
PACES = 51
# The first field of an event is its kind. A step's values come right before its progress: they are no pace.
PACE = b'{"event": "Progress"'
SIGNS_OF_LIFE = (PACE, b'{"event": "Metrics"', b'{"event": "KeepAlive"')
# Only these reach the child; broker, database and secret key stay with the parent.
PASSED_ON = (
    "PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES",
    "HF_HOME", "HF_HUB_CACHE", "GRAFTWORKS_DISK_RESERVE_BYTES",
)  # fmt: skip
# And these where it downloads; a proxy's address may hold a password.
FOR_DOWNLOADS = (
    "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN_PATH", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE",
)  # fmt: skip


@dataclass(slots=True)
class Child:
    """A running engine process and the lines that it has said."""

    process: subprocess.Popen[bytes]
    lines: Spool
    log: IO[bytes]
    stop_asked: float = 0.0
    was_killed: bool = False  # by this parent
    dead_since: float = 0.0  # when its death was noticed
    progress_at: float = field(default_factory=time.monotonic)  # the last sign of life
    paced_at: float = field(default_factory=time.monotonic)
    kills: Kills = field(init=False)
    arms_asked: dict[int, str] = field(default_factory=dict)  # to end alone, and why
    _paces: deque[float] = field(default_factory=lambda: deque(maxlen=PACES))

    def __post_init__(self) -> None:
        self.kills = Kills.around(self.process.pid)

    @classmethod
    def start(cls, job: Job, out_dir: Path, log: IO[bytes]) -> Child:
        """Execute `python -m workers.engine` in its own session and hand it the spec."""
        outcomes = job.training_runs.order_by("pk").values_list("outcome", flat=True)
        ended = [arm for arm, outcome in enumerate(outcomes) if outcome]
        # Asked while an earlier attempt was at work, and not carried out by it.
        wishes = arms_to_stop(job)
        # Nothing that may fail stands behind this line: a child that nobody holds would train unseen.
        process = subprocess.Popen(
            [*ENGINE, job.kind, "--checkpoints", str(job.checkpoint_folder()), "-", str(out_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=settings.BASE_DIR,
            env=environment(job.kind, out_dir),
            start_new_session=True,
            umask=0o027,
        )
        child = cls(process, Spool(out_dir.parent), log)
        child._limit()
        threading.Thread(target=child._read, daemon=True).start()
        child.tell({"parent": os.getpid(), "spec": job.spec, "ended": ended, "attempt": job.attempt})
        child.ask_arms_to_stop(wishes)
        return child

    def _limit(self) -> None:
        """Behind the web, the first victim when memory runs out, and no memory dump on disk."""
        with contextlib.suppress(OSError, psutil.Error):
            resource.prlimit(self.process.pid, resource.RLIMIT_CORE, (0, 0))
            psutil.Process(self.process.pid).nice(5)
            Path(f"/proc/{self.process.pid}/oom_score_adj").write_text("500")

    def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - opened above
        with contextlib.suppress(ValueError):  # closed by `kill`
            while line := self.process.stdout.readline(MAX_LINE + 1):
                if line.startswith(SIGNS_OF_LIFE):
                    self.progress_at = time.monotonic()
                if line.startswith(PACE):
                    self._paces.append(self.progress_at - self.paced_at)
                    self.paced_at = self.progress_at
                self.lines.put(line)
        self.kills.close()
        self.lines.close()

    @property
    def pace(self) -> float:
        """The median of the seconds between two words on how far it is."""
        return statistics.median(tuple(self._paces) or (0.0,))

    @property
    def has_ended(self) -> bool:
        """Whether it will say nothing more: its output is closed, or it has been dead for a while."""
        if self.lines.is_closed or self.process.poll() is None:
            return self.lines.is_closed
        # Not since it was seen alive: a parent that slept meanwhile still has all it said to read.
        self.dead_since = self.dead_since or time.monotonic()
        return time.monotonic() - self.dead_since > LAST_WORDS_SECONDS

    def tell(self, message: dict[str, object]) -> None:
        """Send one line; a child that is gone already will be noticed by its exit."""
        assert self.process.stdin is not None  # noqa: S101 - opened above
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def note(self, text: str) -> None:
        """Write a line into its log. A full disk may cost the line, never the job."""
        with contextlib.suppress(OSError):
            self.log.write(f"{text}\n".encode())

    def ask_to_stop(self, reason: str) -> None:
        """The line carries the reason, the signal ends a child that does not listen yet."""
        self.stop_asked = time.monotonic()
        self.tell({"stop": reason})
        self.note(f"--- asked to stop ({reason}) at {datetime.now(UTC).isoformat()} ---")
        # One that still starts would die of the signal, with nothing published.
        if reason != "finish":
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()

    def ask_arms_to_stop(self, wishes: Mapping[int, str]) -> None:
        """Tell which arms are to end alone, as far as it has not been told already."""
        for arm, reason in wishes.items():
            if self.arms_asked.get(arm) != reason:
                self.arms_asked[arm] = reason
                self.tell({"stop_arm": arm, "reason": reason})

    def leave(self) -> int:
        """Wait for the exit of a child that has closed its output; one that lingers is killed."""
        try:
            return self.process.wait(timeout=LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def kill(self) -> None:
        """End the child and whatever it has started, and wait for it."""
        self.was_killed = self.was_killed or self.process.poll() is None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


def environment(kind: str, out_dir: Path) -> dict[str, str]:
    """What the child may know: where to find programs and models, and how many threads to use."""
    known = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    threads = str(settings.ENGINE_THREADS or max(1, len(os.sched_getaffinity(0)) - 1))
    known |= {
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
    if kind == Job.Kind.INSPECT:
        return known | {name: os.environ[name] for name in FOR_DOWNLOADS if name in os.environ}
    return known | {"HF_HUB_OFFLINE": "1"}
