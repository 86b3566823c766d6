"""Which process works on a slot of this machine: a note in the data folder, so that a successor can end it.

A pid alone may have been given away again, so the note also holds when the process and the kernel began.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
DIE_SECONDS = 10.0


class Occupied(Exception):
    """The process of an earlier attempt does not die, so its device is not free."""


def occupy(slot: str, pid: int) -> None:
    """Note that this process works on the slot now."""
    note = _note(slot)
    aside = note.with_suffix(".new")
    with contextlib.suppress(psutil.Error, OSError):
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        began = psutil.Process(pid).create_time()
        aside.write_text(json.dumps({"boot": _boot_id(), "pid": pid, "began": began}))
        aside.rename(note)


def leave(slot: str) -> None:
    """Its process has ended."""
    _note(slot).unlink(missing_ok=True)


def vacate(slot: str) -> int | None:
    """End what an earlier attempt has left running on the slot, and wait for it; its pid."""
    process = _occupant(slot)
    if process is None:
        leave(slot)
        return None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # The engine leads a group of its own; whatever it has started goes with it.
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(psutil.Error):
        process.kill()
    _gone, alive = psutil.wait_procs([process], timeout=DIE_SECONDS)
    if alive:
        raise Occupied(f"The earlier process {process.pid} on {slot} cannot be ended.")
    leave(slot)
    return int(process.pid)


def _occupant(slot: str) -> psutil.Process | None:
    try:
        note: dict[str, Any] = json.loads(_note(slot).read_text())
        process = psutil.Process(note["pid"])
        is_it = abs(process.create_time() - note["began"]) < 1 and note["boot"] == _boot_id()
        return process if is_it and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, KeyError, psutil.Error):
        return None


def _note(slot: str) -> Path:
    name = re.sub(r"[^\w@.-]", "_", slot)
    return Path(settings.DATA_DIR) / "run" / f"slot-{name}.json"


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return BOOT_ID.read_text().strip()
    return str(int(psutil.boot_time()))
