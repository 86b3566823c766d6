"""A process with torch, Transformers and PEFT loaded, from which engines are forked.

`python -m workers.engine.fork_server FD IDLE_SECONDS MODULES`: FD is a socket to the owner, a worker process
(`workers.supervision.forked_engine`). A message asks for one engine: its command, folder and environment, and
its three streams. The engine becomes a child of the owner and answers with its pid. The server ends with its
owner, and after IDLE_SECONDS without a message.

It has one thread and has not used CUDA, else its forks would be broken. MODULES are libraries: each engine
loads its own code.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from workers.engine import runtime
from workers.engine.__main__ import die_with_parent

READY = b"ready"
# The engine's arguments and variables take fewer bytes.
MAX_MESSAGE = 1 << 17


def main(arguments: list[str]) -> None:
    """Load the modules and serve the owner."""
    descriptor, idle_seconds, modules = arguments[:3]
    die_with_parent()
    runtime.prepare_environment(offline=True)
    # Without it the question for a device would initialise CUDA.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    for module in modules.split(","):
        importlib.import_module(module)
    # The collector would write into pages that all engines share.
    gc.collect()
    gc.freeze()
    if fault := find_fault():
        sys.exit(f"Engines start without a fork server: {fault}.")
    with socket.socket(fileno=int(descriptor)) as owner, contextlib.suppress(TimeoutError, ConnectionError):
        owner.send(READY)
        owner.settimeout(float(idle_seconds))
        serve(owner)


def find_fault() -> str:
    """Return why forks of this process would be broken; "" if they work."""
    # Only a fork can see whether a library has used CUDA.
    if not (probe := os.fork()):
        os._exit("torch" in sys.modules and sys.modules["torch"].cuda._is_in_bad_fork())
    if os.waitpid(probe, 0)[1]:
        return "the libraries have used CUDA"
    return "" if len(os.listdir("/proc/self/task")) == 1 else "the libraries have started threads"


def serve(owner: socket.socket) -> None:
    """Fork an engine for each message, until the owner is gone. Raises TimeoutError after the idle time."""
    while True:
        message, streams, *_ = socket.recv_fds(owner, MAX_MESSAGE, 3)
        if not message:
            return
        if not (between := os.fork()):
            fork_engine(owner, message, streams)
        os.waitpid(between, 0)
        for stream in streams:
            os.close(stream)


def fork_engine(owner: socket.socket, message: bytes, streams: list[int]) -> NoReturn:
    """Fork the engine and end, so that its parent is the owner, which adopts orphans for that moment."""
    status: Any = 1
    try:
        between, request = os.getpid(), json.loads(message)
        if os.fork():
            os._exit(0)
        os.setsid()
        while os.getppid() == between:
            time.sleep(0.001)
        if os.getppid() == request["owner"]:
            owner.send(str(os.getpid()).encode())
            owner.close()
            status = run_engine(request, streams)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status if isinstance(status, int) else 1)


def run_engine(request: dict[str, Any], streams: list[int]) -> int:
    """Execute `main` of the engine's module, with the streams and the environment of the request."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    show_command_line(request["command"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    status: int = importlib.import_module(request["module"]).main(request["command"][3:])
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def show_command_line(command: list[str]) -> None:
    """Write the engine's command over the server's, where `ps` reads it, as far as there is room."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    if start:
        text = "\0".join(command).encode()[: end - start - 1]
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    main(sys.argv[1:])
