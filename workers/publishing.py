"""Gives a finished folder its place: checked, made durable, and renamed once to a name made from its content.

Whoever reads there finds a complete folder or none. Each step bears repetition. Knows nothing of rows.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dashboard.models.adapter import WEIGHTS
from workers.errors import RunError, disk_error

TRIES = 3
RETRY_SECONDS = 0.5
CHUNK_BYTES = 16 * 1024**2
SAFETENSORS_HEADER_LIMIT = 100 * 1024**2
IS_THERE = (errno.EEXIST, errno.ENOTEMPTY)
# Called between two pieces of work: a large folder on a slow disk takes longer than anybody waits for a sign.
Alive = Callable[[], None]


def unwatched() -> None:
    """Nobody waits for a sign."""


class PublishError(RunError):
    """What the engine wrote is not what it reported, or could not be put in its place."""

    code = "publish_failed"


def publish_adapter(source: Path, target: Path, files: dict[str, str], alive: Alive = unwatched) -> None:
    """Publish a folder of exactly these files; a disk that refuses is asked three times."""
    for left in reversed(range(TRIES)):
        try:
            if source.exists():
                check_adapter(source, files, alive)
            publish_folder(source, target, alive)
            check_adapter(target, files, alive)
            return
        except OSError as error:
            if not left:
                reason = error.strerror or type(error).__name__
                failure = PublishError(f"The adapter could not be put in its place: {reason}.")
                raise disk_error(error) or failure from error
            time.sleep(RETRY_SECONDS)


def publish_folder(source: Path, target: Path, alive: Alive = unwatched) -> None:
    """Make `source` durable, then give it its content's name by one rename. Equal content is kept once.

    Repeated after a commit that failed, it finds the folder in its place and changes nothing.
    """
    target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    if source.exists() or not target.is_dir():
        for path in [*source.rglob("*"), source]:
            alive()
            _sync(path)
        try:
            source.rename(target)
        except OSError as error:
            if error.errno not in IS_THERE:
                raise
            _mend(target, source, alive)
            shutil.rmtree(source)
    _sync(target.parent)


def _mend(target: Path, source: Path, alive: Alive) -> None:
    """What differs below `target` gives way to what was just written: equal names stand for equal content.

    File by file, so that whoever reads there finds each file at any moment, the old one or the new one.
    """
    wanted, aside = _files(source), source / ".mending"
    for name in sorted(_files(target) - wanted):
        (target / name).unlink()
    for name in sorted(wanted):
        if _are_equal(source / name, target / name, alive):
            continue
        (target / name).parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        try:
            # A copy: until everything is in its place, the source is what it was, and this may be repeated.
            shutil.copy(source / name, aside)
            _sync(aside)
            aside.replace(target / name)
        finally:
            aside.unlink(missing_ok=True)
        _sync((target / name).parent)


def _are_equal(whole: Path, other: Path, alive: Alive) -> bool:
    """Whether the other file can be read, and holds the same."""
    digest = _sha256(whole, alive)
    try:
        return _sha256(other, alive) == digest
    except OSError:
        return False


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _sha256(path: Path, alive: Alive) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            alive()
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_adapter(folder: Path, files: dict[str, str], alive: Alive = unwatched) -> None:
    """What lies in the folder must be exactly what was reported, and the weights a plain safetensors file."""
    present = _files(folder)
    if present != set(files) or WEIGHTS not in files:
        raise PublishError(
            f"The adapter folder holds other files than reported: {sorted(present ^ set(files))}."
        )
    for name, digest in files.items():
        if _sha256(folder / name, alive) != digest:
            raise PublishError(f"The file {name} changed between writing and publishing.")
    check_safetensors(folder / WEIGHTS)


def check_safetensors(path: Path) -> None:
    """The header is JSON whose tensors fill the file without a gap: 8 bytes of length, header, data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, SAFETENSORS_HEADER_LIMIT):
            raise PublishError("The adapter's weights have a broken header.")
        text = file.read(length)
    try:
        header = json.loads(text)
        spans = sorted((int(start), int(stop)) for start, stop in _offsets(header))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PublishError("The adapter's weights have a broken header.") from error
    end = 0
    for start, stop in spans:
        if start != end or stop < start:
            raise PublishError("The adapter's weights have a broken header.")
        end = stop
    if not spans or 8 + length + end != size:
        raise PublishError("The adapter's weights are incomplete.")


def _offsets(header: dict[str, Any]) -> list[list[int]]:
    return [item["data_offsets"] for name, item in header.items() if name != "__metadata__"]
