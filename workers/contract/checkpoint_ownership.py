"""Ownership of a training's checkpoint folder, and which of its checkpoints are valid.

A worker that has lost the database may train on beside the next attempt, on a disk that both see. So each
attempt but the first writes its number and the checkpoints that it finds into the folder before it reads
there. An earlier attempt ends as soon as it sees that; its later checkpoints are invalid. Standard library
only.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from workers.contract.errors import TakenOver, disk_error

MANIFEST, OWNER = "manifest.json", "owner.json"
TEMPORARY = ".owner-"
FIRST_ATTEMPT = 1
# A disk that works reports these for a file that does not exist; other errors mean that it cannot be read.
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


@dataclass(frozen=True)
class Owner:
    """The latest attempt that took ownership, and the names of the checkpoints that it inherited.

    The default means that no attempt took ownership and every checkpoint is valid.
    """

    attempt: int = 0
    inherited: frozenset[str] | None = None


def read_owner(folder: Path) -> Owner:
    """Return the present owner of the folder."""
    try:
        values = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return Owner(int(values["attempt"]), frozenset(values["inherited"]))
    except (*MISSING, ValueError, KeyError, TypeError):
        return Owner()


def check_ownership(folder: Path, attempt: int) -> None:
    """Raise TakenOver if a later attempt owns the folder."""
    owner = read_owner(folder).attempt
    if owner > attempt:
        raise TakenOver(owner)


def take_ownership(folder: Path, attempt: int) -> int:
    """Take ownership of the folder and return the attempt's number: 0 is the one after the present owner.

    A write that fails is tried once more. Raises TakenOver if a later attempt owns the folder, and DiskFull.
    The first attempt writes nothing: there is no earlier one, and an attempt that fails before its first
    checkpoint leaves no folder.
    """
    attempt = attempt or max(read_owner(folder).attempt, FIRST_ATTEMPT) + 1
    if attempt <= FIRST_ATTEMPT:
        check_ownership(folder, attempt)
        return attempt
    for is_last in (False, True):
        check_ownership(folder, attempt)
        if read_owner(folder).attempt == attempt:
            break
        try:
            _write_owner(folder, attempt)
        except OSError as error:
            if is_last:
                raise disk_error(error) or error from error
    return attempt


def _write_owner(folder: Path, attempt: int) -> None:
    """Write the owner by one rename, so that a reader finds the old number or the new one."""
    values = {"attempt": attempt, "inherited": [path.name for path in valid_checkpoints(folder)]}
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{TEMPORARY}*"):
        leftover.unlink(missing_ok=True)
    temporary = folder / f"{TEMPORARY}{attempt}"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(values))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / OWNER)
    finally:
        temporary.unlink(missing_ok=True)


def all_checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoints in the folder, newest first."""
    return sorted((path for path in folder.glob("[0-9]*") if path.name.isdecimal()), reverse=True)


def valid_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints that the owner inherited or wrote, newest first."""
    owner = read_owner(folder)
    return [path for path in all_checkpoints(folder) if _is_valid(path, owner)]


def _is_valid(path: Path, owner: Owner) -> bool:
    if owner.inherited is None or path.name in owner.inherited:
        return True
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest["attempt"] == owner.attempt)
    except (*MISSING, ValueError, KeyError, TypeError):
        return True  # The reader of a damaged checkpoint reports it.
