"""Interrupts a process at the N-th thing it does to the disk, from outside the code under test.

A moment is what another process could see: a file opened for writing, renamed or removed, a folder made, an
fsync, or whatever the test passes on itself (an event, a commit). Each has a label such as `rename 000002`.
Use it in a process of its own: Python's audit hooks stay until the process ends.
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
    """What happens just before a moment. Without `error` the process is killed."""

    at: int = 1  # the N-th moment whose label matches `only`
    only: str = ""
    error: str = ""  # the name of an errno, with which a write fails
    lasts: bool = False  # every later write fails too


def install(interruption: Interruption, folder: Path) -> Callable[[str], None]:
    """Watch what this process does below `folder`; returns the function that passes a moment by hand."""
    passed = 0

    def pass_moment(label: str) -> None:
        nonlocal passed
        is_write = label.partition(" ")[0] in WRITES
        if (interruption.error and not is_write) or not re.match(interruption.only, label):
            return
        passed += 1
        if passed == interruption.at or (interruption.lasts and passed > interruption.at):
            _strike(interruption)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in AUDITED:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITE_FLAGS):
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        # A relative name stands for a file in a folder that is being removed.
        if isinstance(path, int) or not _is_below(folder, Path(os.fsdecode(path))):
            return
        pass_moment(f"{AUDITED[event]} {Path(os.fsdecode(path)).name}")

    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        pass_moment(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        real_fsync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
    sys.addaudithook(watch)
    return pass_moment


def _is_below(folder: Path, path: Path) -> bool:
    return not path.is_absolute() or path.is_relative_to(folder)


def _strike(interruption: Interruption) -> None:
    if not interruption.error:
        os.kill(os.getpid(), signal.SIGKILL)
    number: int = getattr(errno, interruption.error)
    raise OSError(number, os.strerror(number))


def refusing(function: Callable[..., Any], error: str, at: Collection[int] = ()) -> Callable[..., Any]:
    """Return `function` so that its calls with these numbers, or all of them, raise an OSError."""
    calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if not at or calls in at:
            number: int = getattr(errno, error)
            raise OSError(number, os.strerror(number))
        return function(*arguments, **options)

    return call
