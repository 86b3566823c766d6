"""Programs of the installation as real processes, on the database and the broker of the present test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from django.conf import settings

from tests.conftest import shared_environment

# A training node with one pool process.
WORKER = ("-m", "celery", "-A", "workers.celery", "worker", "-P", "prefork", "-c", "1", "-Q", "gpu")


@contextlib.contextmanager
def running(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python with these arguments until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, *arguments], env=shared_environment() | environment, cwd=settings.BASE_DIR
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def running_worker() -> Iterator[subprocess.Popen[bytes]]:
    """Run a training node; kill it and its whole process group at the end of the block."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        [sys.executable, *WORKER, "-n", "gpu0@here"],
        env=shared_environment() | {"PATH": path},
        cwd=settings.BASE_DIR,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(holds: Callable[[], object], name: str, seconds: float = 60, interval: float = 0.1) -> float:
    """Wait until `holds()`; return the seconds that it took. Raises AssertionError with the name."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"{name}: not within {seconds:.0f} s"
        time.sleep(interval)
    return time.monotonic() - began
