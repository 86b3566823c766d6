"""Device locks: one file per slot of this machine records the process that uses it.

The next attempt on the slot kills a process that an earlier attempt left behind.
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

from workers.supervision.process_identity import birth, here, living

EXIT_SECONDS = 10.0


class DeviceBusy(Exception):
    """The process of an earlier attempt does not die, so its device is not free."""


def slot_name(node: str, index: int = 0) -> str:
    """Return the slot of a node's pool process. Nodes of one name in two containers share none."""
    place, own = here(), f"#{index + 1}" if index else ""
    return f"{node}/{place.tag}{own}" if place else f"{node}{own}"


def acquire(slot: str, pid: int) -> None:
    """Record that this process uses the slot now."""
    file = _lock_file(slot)
    temporary = file.with_suffix(".new")
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"pid": pid, "born": birth(pid)}))
        temporary.rename(file)


def release(slot: str) -> None:
    """Remove the record; the process has ended."""
    _lock_file(slot).unlink(missing_ok=True)


def clear(slot: str) -> int | None:
    """Kill the process that an earlier attempt left on the slot, and wait for its end; return its pid.

    Raises DeviceBusy if it does not end.
    """
    process = _holder(slot)
    if process is None:
        release(slot)
        return None
    kill(process)
    _gone, alive = psutil.wait_procs([process], timeout=EXIT_SECONDS)
    if alive:
        raise DeviceBusy(f"The earlier process {process.pid} on {slot} cannot be ended.")
    release(slot)
    return int(process.pid)


def kill(engine: psutil.Process) -> None:
    """Kill an engine without a supervisor, and its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(engine.pid, signal.SIGKILL)
    with contextlib.suppress(psutil.Error):
        engine.kill()


def _holder(slot: str) -> psutil.Process | None:
    try:
        record: dict[str, Any] = json.loads(_lock_file(slot).read_text())
        return living(record["pid"], record["born"])
    except (OSError, ValueError, KeyError):
        return None


def _lock_file(slot: str) -> Path:
    name = re.sub(r"[^\w@.-]", "_", slot)
    return Path(settings.DATA_DIR) / "run" / f"slot-{name}.json"
