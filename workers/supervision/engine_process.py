"""The engine as a process: its start, environment, stop and kill.

Knows nothing of the database, and of an event only whether it is a sign of progress.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from django.conf import settings

from dashboard.models import HubPush, Job
from workers.contract.chat_connections import connection_key
from workers.contract.events import MAX_LINE
from workers.supervision.forked_engine import ForkingPopen, limit
from workers.supervision.line_queue import LineQueue
from workers.supervision.promised_memory import promised_bytes

ENGINE = (sys.executable, "-m", "workers.engine")
# Longest wait for the last lines of a dead engine: a process that it left behind can hold the pipe open.
LAST_LINES_SECONDS = 5.0
EXIT_SECONDS = 10.0
STEPS_REMEMBERED = 51
# The first field of an event is its kind. Metrics come right before the progress of the same step.
STEP = b'{"event": "Progress"'
SIGNS_OF_PROGRESS = (STEP, b'{"event": "Metrics"', b'{"event": "KeepAlive"')
# The engine gets these alone: not the broker, the database or the secret key.
ENGINE_VARIABLES = (
    "PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES",
    "HF_HOME", "HF_HUB_CACHE", "GRAFTWORKS_DISK_RESERVE_BYTES", "PYTHONDONTWRITEBYTECODE",
)  # fmt: skip
# The kinds that talk to the hub.
ONLINE = (Job.Kind.INSPECT, Job.Kind.PUSH)
# And these for the hub only, because a proxy's address may hold a password.
HUB_VARIABLES = (
    "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN_PATH", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE",
)  # fmt: skip
TOKEN_VARIABLE = "HF_TOKEN_PATH"  # noqa: S105 - a name
CGROUPS = Path("/sys/fs/cgroup")


def oom_kills() -> int:
    """Return how many processes of this control group the kernel killed for lack of memory; 0 if unknown."""
    with contextlib.suppress(OSError, ValueError):
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        group = next((line.removeprefix("0::/") for line in groups if line.startswith("0::/")), "")
        counts = dict(line.split() for line in (CGROUPS / group / "memory.events").read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    return 0


@dataclass(slots=True)
class EngineProcess:
    """A running engine and the lines that it has written."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]
    lines: LineQueue = field(default_factory=LineQueue)
    was_killed: bool = False  # by this parent
    dead_since: float = 0.0  # when its death was noticed
    last_progress: float = field(default_factory=time.monotonic)
    last_step: float = field(default_factory=time.monotonic)
    oom_kills_before: int = field(default_factory=oom_kills)
    _step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS_REMEMBERED))

    @classmethod
    def start(cls, job: Job, out_dir: Path, log: IO[bytes]) -> EngineProcess:
        """Start `python -m workers.engine` in its own session and hand it the spec."""
        outcomes = job.training_runs.order_by("pk").values_list("outcome", flat=True)
        ended = [arm for arm, outcome in enumerate(outcomes) if outcome]
        private = private_values(job)
        # Nothing below may fail: the engine would run without a supervisor.
        process = (ForkingPopen if is_forkable(job) else subprocess.Popen)(
            [*ENGINE, job.kind, "--checkpoints", str(job.checkpoint_folder()), "-", str(out_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=settings.BASE_DIR,
            env=environment(job.kind, out_dir),
            start_new_session=True,
            umask=0o027,
        )
        engine = cls(process, log)
        limit(process.pid, is_inference=job.kind == Job.Kind.SERVE)
        threading.Thread(target=engine._read, daemon=True).start()
        envelope = {"parent": os.getpid(), "spec": job.spec, "ended": ended, "attempt": job.attempt}
        engine.send(envelope | private)
        return engine

    def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - opened above
        with contextlib.suppress(ValueError):  # closed by `kill`
            while line := self.process.stdout.readline(MAX_LINE + 1):
                if line.startswith(SIGNS_OF_PROGRESS):
                    self.last_progress = time.monotonic()
                if line.startswith(STEP):
                    self._step_seconds.append(self.last_progress - self.last_step)
                    self.last_step = self.last_progress
                self.lines.put(line)
        self.lines.close()

    @property
    def seconds_per_step(self) -> float:
        """Return the median of the seconds between two reports of progress."""
        return statistics.median(tuple(self._step_seconds) or (0.0,))

    @property
    def has_ended(self) -> bool:
        """Return whether no more lines come: its output is closed, or it ended some seconds ago."""
        if self.lines.is_closed or self.process.poll() is None:
            return self.lines.is_closed
        # Counted from here: after a suspend of the machine all lines are still to be read.
        self.dead_since = self.dead_since or time.monotonic()
        return time.monotonic() - self.dead_since > LAST_LINES_SECONDS

    @property
    def has_oom_kill(self) -> bool:
        """Return whether the kernel has killed a process of this control group for lack of memory."""
        return oom_kills() > self.oom_kills_before

    def send(self, message: dict[str, object]) -> None:
        """Write one line to its input; the exit status reports a dead engine."""
        assert self.process.stdin is not None  # noqa: S101 - opened above
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def write_log(self, text: str) -> None:
        """Write a line into the job's log. A full disk may cost the line, never the job."""
        with contextlib.suppress(OSError):
            self.log.write(f"{text}\n".encode())

    def request_stop(self, reason: str) -> None:
        """Send the reason as a line, and SIGTERM for an engine that does not read its input yet."""
        self.send({"stop": reason})
        self.write_log(f"--- stop requested ({reason}) at {datetime.now(UTC).isoformat()} ---")
        # The signal would kill an engine that is still starting, with nothing published.
        if reason != "finish":
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()

    def wait(self) -> int:
        """Return the exit status of an engine that has closed its output; kill it if it does not exit."""
        try:
            return self.process.wait(timeout=EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def kill(self) -> None:
        """Kill the engine and whatever it has started, and wait for its end."""
        self.was_killed = self.was_killed or self.process.poll() is None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


def private_values(job: Job) -> dict[str, str | int]:
    """Return what the engine needs and no row, file or environment holds."""
    if job.kind == Job.Kind.SERVE:
        key, listen = connection_key(settings.SECRET_KEY), settings.INFERENCE_LISTEN
        return {"promised": promised_bytes(), **({"token": key, "listen": listen} if listen else {})}
    token = HubPush.objects.token_of(job)
    return {"token": token} if token else {}


def is_forkable(job: Job) -> bool:
    """Return whether the job loads the libraries as all others do: without the hub and bitsandbytes."""
    return job.kind not in ONLINE and not job.needs_4bit


def environment(kind: str, out_dir: Path) -> dict[str, str]:
    """Return the engine's environment: paths of programs and models, and the number of threads."""
    variables = {name: os.environ[name] for name in ENGINE_VARIABLES if name in os.environ}
    cores = len(os.sched_getaffinity(0))
    threads = str(settings.ENGINE_THREADS or max(1, cores // settings.CPU_TRAININGS))
    if kind == Job.Kind.SERVE:
        # A training on the same cores goes on.
        threads = str(max(1, cores // 4))
    variables |= {
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(out_dir),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        # NumPy would start these threads at its import, and has nothing for them to do.
        "OPENBLAS_NUM_THREADS": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        # NVML, from which the node knows its GPU, counts them in this order too.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    if kind == Job.Kind.PUSH:
        # The same way of uploading everywhere, and the one that the tests walk.
        variables["HF_HUB_DISABLE_XET"] = "1"
    if kind not in ONLINE:
        return variables | {"HF_HUB_OFFLINE": "1"}
    variables |= {name: os.environ[name] for name in HUB_VARIABLES if name in os.environ}
    if kind == Job.Kind.PUSH:
        # It has a token of its own, from the person who pushes.
        variables.pop(TOKEN_VARIABLE, None)
    return variables
