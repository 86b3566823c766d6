"""Programs of the installation, run for real on the database and the broker of the present test."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.conf import settings

from tests.conftest import shared_environment

# A training node with one process.
WORKER = (
    "celery",
    "-A",
    "workers.celery",
    "worker",
    "-P",
    "prefork",
    "-c",
    "1",
    "-Q",
    "gpu",
    "-n",
    "gpu0@here",
)


@contextmanager
def running(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """One program, ended afterwards. `environment` comes on top of what tests share."""
    process = subprocess.Popen(
        [sys.executable, *command], env=shared_environment() | environment, cwd=settings.BASE_DIR
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


def until(holds: Callable[[], bool], seconds: float, what: str, pause: float = 0.2) -> None:
    """Wait until `holds()`, looking each `pause` seconds; the timeout's error says `what`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(pause)
