"""Fault injection at the N-th disk operation of a process, from outside the code under test.

An operation is a file opened for writing, renamed or removed, a folder made, an fsync, or whatever the test
reports itself (an event, a commit). Each has a label such as `rename 000002`. Use it in a child process:
Python's audit hooks stay until the process ends.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITES = ("open", "mkdir", "rename", "fsync")
AUDITED = {
    "open": "open",
    "os.mkdir": "mkdir",
    "os.rename": "rename",
    "os.remove": "remove",
    "os.rmdir": "remove",
    "shutil.rmtree": "remove",
}
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Interruption:
    """A fault just before an operation. Without `error` the process is killed."""

    at: int = 1  # the N-th operation whose label matches `only`
    only: str = ""
    error: str = ""  # the name of an errno, with which a write fails
    lasts: bool = False  # every later write fails too


def install(interruption: Interruption, folder: Path) -> Callable[[str], None]:
    """Inject the fault into this process, below `folder`. Return the function that reports an operation."""
    count = 0

    def report_operation(label: str) -> None:
        nonlocal count
        is_write = label.partition(" ")[0] in WRITES
        if (interruption.error and not is_write) or not re.match(interruption.only, label):
            return
        count += 1
        if count == interruption.at or (interruption.lasts and count > interruption.at):
            _inject(interruption)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in AUDITED:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITE_FLAGS):
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        # A relative name is a file in a folder that is being removed.
        if isinstance(path, int) or not _is_below(folder, Path(os.fsdecode(path))):
            return
        report_operation(f"{AUDITED[event]} {Path(os.fsdecode(path)).name}")

    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        report_operation(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        real_fsync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
    sys.addaudithook(audit)
    return report_operation


def _is_below(folder: Path, path: Path) -> bool:
    return not path.is_absolute() or path.is_relative_to(folder)


def _inject(interruption: Interruption) -> None:
    if not interruption.error:
        os.kill(os.getpid(), signal.SIGKILL)
    _raise_os_error(interruption.error)


def _raise_os_error(name: str) -> None:
    number: int = getattr(errno, name)
    raise OSError(number, os.strerror(number))


def raising(function: Callable[..., Any], error: str, at: Collection[int] = ()) -> Callable[..., Any]:
    """Return `function` so that its calls with these numbers, or all of them, raise an OSError."""
    calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if not at or calls in at:
            _raise_os_error(error)
        return function(*arguments, **options)

    return call
