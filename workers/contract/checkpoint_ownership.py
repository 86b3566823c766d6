"""Ownership of a training's checkpoint folder, and which of its checkpoints are valid.

A worker that has lost the database may train on for minutes beside the next attempt, on a disk that both see.
So an attempt writes its number into the folder before it reads there, and the names that it found. An earlier
one ends as soon as it sees that, and what it has written since then is nobody's. Standard library only.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from workers.contract.errors import TakenOver, disk_error

MANIFEST, HOLDER = "manifest.json", "holder.json"
ASIDE = ".holder-"
FIRST = 1
# Not there, or something else is: what a disk that works says of things that are gone.
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


@dataclass(frozen=True)
class Holder:
    """The latest attempt that took the folder. The default: not taken, every checkpoint is valid."""

    attempt: int = 0
    found: frozenset[str] | None = None


def holder(folder: Path) -> Holder:
    """Return the present owner of the folder."""
    try:
        values = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return Holder(int(values["attempt"]), frozenset(values["found"]))
    except (*MISSING, ValueError, KeyError, TypeError):
        return Holder()


def check(folder: Path, attempt: int) -> None:
    """Raise TakenOver if a later attempt owns the folder."""
    now = holder(folder).attempt
    if now > attempt:
        raise TakenOver(now)


def take(folder: Path, attempt: int) -> None:
    """Take ownership of the folder; a write that fails is tried once more.

    The first attempt has nobody to oust, and one that fails before it has learned anything leaves nothing.
    """
    if attempt <= FIRST:
        check(folder, attempt)
        return
    for is_last in (False, True):
        check(folder, attempt)
        if holder(folder).attempt == attempt:
            return
        try:
            _sign(folder, attempt)
        except OSError as error:
            if is_last:
                raise disk_error(error) or error from error


def _sign(folder: Path, attempt: int) -> None:
    """Write the owner by one rename, so that a reader finds the old number or the new one."""
    values = {"attempt": attempt, "found": [path.name for path in checkpoints(folder)]}
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob(f"{ASIDE}*"):
        earlier.unlink(missing_ok=True)
    aside = folder / f"{ASIDE}{attempt}"
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(json.dumps(values))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(folder / HOLDER)
    finally:
        aside.unlink(missing_ok=True)


def take_as_next(folder: Path) -> int:
    """Take ownership as the attempt after the present owner; return its number."""
    attempt = max(holder(folder).attempt, FIRST) + 1
    take(folder, attempt)
    return attempt


def numbered(folder: Path) -> list[Path]:
    """Return all checkpoints in the folder, newest first."""
    return sorted((path for path in folder.glob("[0-9]*") if path.name.isdecimal()), reverse=True)


def checkpoints(folder: Path) -> list[Path]:
    """Return the valid checkpoints, newest first: the owner's own, and those it found there."""
    now = holder(folder)
    return [path for path in numbered(folder) if now.found is None or _counts(path, now, now.found)]


def _counts(path: Path, now: Holder, found: frozenset[str]) -> bool:
    if path.name in found:
        return True
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest["attempt"] == now.attempt)
    except (*MISSING, ValueError, KeyError, TypeError):
        return True  # damaged, which is for whoever reads it to tell
