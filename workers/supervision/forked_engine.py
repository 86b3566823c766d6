"""Engines that are forked from a process with torch loaded, instead of seconds of imports for each job.

A worker process owns one fork server. It starts with the worker or its first job, and ends after some idle
minutes. A forked engine is a child of the worker process, with its own session, pipes and environment, as one
that is executed. Without a server that answers, an engine is executed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings

logger = logging.getLogger(__name__)

FORK_SERVER = "workers.engine.fork_server"
# What all trainings and evaluations load, of all architectures that of the bundled base model.
LIBRARIES = ("torch", "transformers.models.llama.modeling_llama", "peft", "safetensors.torch")
# Program -> module with its `main`.
FORKED = {"workers.engine": "workers.engine.__main__"}
# A job waits for the libraries, as it would load them itself. Its lease and the worker's grace are longer.
LOAD_SECONDS = 45.0
ANSWER_SECONDS = 10.0
ANSWER_BYTES = 64
# Bytes beside the server's own that an engine's command line may have in `ps`.
ROOM = 1000
PR_SET_CHILD_SUBREAPER = 36
# For lack of memory the kernel kills the process with the largest sum of this and its share of the memory in
# thousandths. Beside 1000, a training is killed first only if it holds 90 % of the memory more: never while
# the inference job holds 5 %. It still goes before web server and database, which have 0.
TRAINING_OOM_SCORE, INFERENCE_OOM_SCORE = 100, 1000


class ForkingPopen(subprocess.Popen[Any]):
    """A Popen that forks engines from the server, and executes all other programs."""

    def _execute_child(self, args: Any, *rest: Any) -> None:  # type: ignore[override]
        # In the order of Popen's own arguments.
        cwd, environment = rest[4], rest[5]
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = rest[9:15]
        streams = [fd if fd != -1 else number for number, fd in enumerate((p2cread, c2pwrite, errwrite))]
        pid = fork_engine(args, cwd, environment, streams)
        if pid is None:
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        self.pid = pid
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


class ForkServer:
    """The process that has the libraries loaded, and the connection to it. Start it from the main thread."""

    def __init__(self, environment: Mapping[str, str], idle_seconds: float, modules: Sequence[str]) -> None:
        self.environment, self.is_ready, self.lock = dict(environment), False, threading.Lock()
        self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        options = [str(theirs.fileno()), str(idle_seconds), ",".join(modules), " " * ROOM]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", FORK_SERVER, *options],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd=settings.BASE_DIR,
                env=self.environment,
                start_new_session=True,
                umask=0o027,
            )
        limit(self.process.pid)
        # It ends by itself and would stay a zombie.
        threading.Thread(target=self.process.wait, daemon=True).start()

    def fork(
        self, command: Sequence[str], cwd: Any, environment: Mapping[str, str], streams: list[int]
    ) -> int:
        """Start an engine as a child of this process; return its pid. Raises OSError if none has started."""
        request = {
            "owner": os.getpid(),
            "command": [os.fspath(argument) for argument in command],
            "module": FORKED[command[2]],
            "cwd": os.fspath(cwd or "."),
            "environment": dict(environment),
        }
        with self.lock:
            self.await_ready()
            with adopting_orphans():
                self.connection.settimeout(ANSWER_SECONDS)
                try:
                    socket.send_fds(self.connection, [json.dumps(request).encode()], streams)
                    return int(self._receive())
                except OSError:
                    # A late engine cannot report itself to a closed connection, and ends.
                    self.close()
                    raise

    def await_ready(self) -> None:
        """Wait until the libraries are loaded. Raises OSError if that takes long, or if it has ended."""
        if not self.is_ready:
            self.connection.settimeout(LOAD_SECONDS)
            self._receive()
            self.is_ready = True

    def _receive(self) -> bytes:
        if answer := self.connection.recv(ANSWER_BYTES):
            return answer
        raise ConnectionError("the fork server has ended")

    @property
    def has_refused(self) -> bool:
        """Return whether it has ended before it was ready, by itself: the next one would do the same."""
        return not self.is_ready and (self.process.poll() or 0) > 0

    def close(self) -> None:
        """End the server."""
        self.connection.close()
        self.process.kill()


_servers: list[ForkServer] = []


def server(environment: Mapping[str, str]) -> ForkServer | None:
    """Return this process's server for engines of that environment; None if there can be none.

    Starts it if there is none, if it has ended, or if the environment has changed, which is read at import.
    """
    lasting = {name: value for name, value in environment.items() if name != "TMPDIR"}
    current = _servers[0] if _servers else None
    if not settings.ENGINE_PRELOAD_MINUTES or (current and current.has_refused):
        return None
    if current is None or current.process.poll() is not None or current.environment != lasting:
        if current:
            current.close()
        _servers[:] = [ForkServer(lasting, 60 * settings.ENGINE_PRELOAD_MINUTES, LIBRARIES)]
    return _servers[0]


def fork_engine(command: Any, cwd: Any, environment: Any, streams: list[int]) -> int | None:
    """Fork an engine and return its pid; None if the command has to be executed."""
    if isinstance(command, str) or command[:2] != [sys.executable, "-m"] or command[2] not in FORKED:
        return None
    environment = os.environ if environment is None else environment
    try:
        if current := server(environment):
            return current.fork(command, cwd, environment, streams)
    except OSError as error:
        logger.warning("An engine is executed, not forked: %s", error)
    return None


def limit(pid: int, *, is_inference: bool = False) -> None:
    """Lower a process's priority, let the kernel kill it first for lack of memory, and forbid core dumps."""
    # People wait for an inference job's answers, and a killed one starts again with the next prompt.
    nice, oom_score = (2, INFERENCE_OOM_SCORE) if is_inference else (5, TRAINING_OOM_SCORE)
    with contextlib.suppress(OSError, psutil.Error):
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        psutil.Process(pid).nice(nice)
        adjustment = Path(f"/proc/{pid}/oom_score_adj")
        # Only root may lower it, and a service or container may have started with more.
        adjustment.write_text(str(max(oom_score, int(adjustment.read_text()))))
        # Where the kernel shares cores between sessions, the nice value of the engine's own session counts.
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Let Linux make orphaned descendants children of this process, as a forked engine has to be."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)
