"""`python -m workers.engine` without seven seconds of imports: forked from a server that has torch loaded.

The engines are real processes with their own pipes, session, environment and working directory, and children
of the process that starts them. `python -m workers.engine` itself runs in `tests/e2e`, `tests/chaos`, under
real Celery workers, and where a test asks for `unforked_engines`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Program -> module of its `main`.
FORKED = {
    "workers.engine": "workers.engine.__main__",
    "tests.engine.engine_cost": "tests.engine.engine_cost",
    "tests.engine.importing.corpus": "tests.engine.importing.corpus",
    "tests.engine.noisy_engine": "tests.engine.noisy_engine",
}
PR_SET_CHILD_SUBREAPER = 36
# No more arguments and variables than these bytes.
MAX_MESSAGE = 1 << 17


class ForkingPopen(subprocess.Popen[Any]):
    """A Popen that forks engines from the server and starts every other program as usual."""

    def _execute_child(self, args: Any, *rest: Any) -> None:  # type: ignore[override]
        if isinstance(args, str) or args[:2] != [sys.executable, "-m"] or args[2] not in FORKED:
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        # In the order of Popen's own arguments.
        cwd, env = rest[4], rest[5]
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = rest[9:15]
        streams = [fd if fd != -1 else number for number, fd in enumerate((p2cread, c2pwrite, errwrite))]
        self.pid = server().fork([os.fspath(argument) for argument in args[2:]], cwd, env, streams)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


class Server:
    """The process that has imported torch, and the connection to it."""

    def __init__(self) -> None:
        self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.lock = threading.Lock()
        variables = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "tests.engine_server", str(theirs.fileno())]
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=variables, cwd=Path(__file__).parents[1]
        )
        theirs.close()

    def fork(self, arguments: list[str], cwd: Any, env: Any, streams: list[int]) -> int:
        """Start an engine as a child of this process and return its pid."""
        message = {
            "arguments": arguments,
            "cwd": os.fspath(cwd or "."),
            "environment": dict(env or os.environ),
            "parent": os.getpid(),
        }
        with self.lock, adopting_orphans():
            socket.send_fds(self.connection, [json.dumps(message).encode()], streams)
            answer = self.connection.recv(MAX_MESSAGE)
            assert answer, "the server of engines has died"
            pid = int(answer)
            while read_parent(pid) != os.getpid():
                time.sleep(0.001)
        return pid


_servers: list[Server] = []


def server() -> Server:
    """Return the server of this process; start it before the first engine."""
    if not _servers:
        _servers.append(Server())
    return _servers[0]


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Let Linux make orphaned descendants children of this process, as a forked engine has to be."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)


def read_parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(scope="package", autouse=True)
def forked_engines() -> Iterator[None]:
    """Fork the engines of a package of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", ForkingPopen)
        yield


@pytest.fixture
def unforked_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the engines of one test with all of their imports."""
    monkeypatch.setattr(subprocess, "Popen", ForkingPopen.__base__)


def serve(connection: socket.socket) -> None:
    """Fork an engine for each message until the other end is closed."""
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    import transformers.models.llama.modeling_llama  # noqa: F401

    import workers.engine.__main__
    import workers.engine.base_models.inspect_model
    import workers.engine.evaluation.evaluate
    import workers.engine.importing.run_import
    import workers.engine.training.train  # noqa: F401

    gc.collect()
    gc.freeze()
    while True:
        message, streams, *_ = socket.recv_fds(connection, MAX_MESSAGE, 3)
        if not message:
            return
        between = os.fork()
        if not between:
            engine = os.fork()
            if not engine:
                run_engine(json.loads(message), streams)
            connection.send(str(engine).encode())
            # The engine becomes the child of the process that asked for it.
            os._exit(0)
        os.waitpid(between, 0)
        for stream in streams:
            os.close(stream)


def run_engine(command: dict[str, Any], streams: list[int]) -> None:
    """Become the engine."""
    program, *arguments = command["arguments"]
    status = 1
    try:
        os.setsid()
        while os.getppid() != command["parent"]:
            time.sleep(0.001)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, 1024)
        os.chdir(command["cwd"])
        os.umask(0o027)
        os.environ.clear()
        os.environ.update(command["environment"])
        tempfile.tempdir = None
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = importlib.import_module(FORKED[program]).main(arguments)
        for output in (sys.stdout, sys.stderr):
            output.flush()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
