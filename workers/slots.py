"""Which process works on a slot of this machine: a note in the data folder, by which a successor ends it."""

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

from workers.identity import birth, here, living

DIE_SECONDS = 10.0


class Occupied(Exception):
    """The process of an earlier attempt does not die, so its device is not free."""


def name_of(node: str) -> str:
    """The slot of a node. In two containers nodes of the same name have each a device of their own."""
    place = here()
    return f"{node}/{place.tag}" if place else node


def occupy(slot: str, pid: int) -> None:
    """Note that this process works on the slot now."""
    note = _note(slot)
    aside = note.with_suffix(".new")
    with contextlib.suppress(OSError):
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside.write_text(json.dumps({"pid": pid, "born": birth(pid)}))
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
    kill(process)
    _gone, alive = psutil.wait_procs([process], timeout=DIE_SECONDS)
    if alive:
        raise Occupied(f"The earlier process {process.pid} on {slot} cannot be ended.")
    leave(slot)
    return int(process.pid)


def kill(engine: psutil.Process) -> None:
    """End an engine that nobody watches any more."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # It leads a group of its own; whatever it has started goes with it.
        os.killpg(engine.pid, signal.SIGKILL)
    with contextlib.suppress(psutil.Error):
        engine.kill()


def _occupant(slot: str) -> psutil.Process | None:
    try:
        note: dict[str, Any] = json.loads(_note(slot).read_text())
        return living(note["pid"], note["born"])
    except (OSError, ValueError, KeyError):
        return None


def _note(slot: str) -> Path:
    name = re.sub(r"[^\w@.-]", "_", slot)
    return Path(settings.DATA_DIR) / "run" / f"slot-{name}.json"
