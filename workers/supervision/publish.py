"""Publish a finished folder: check it, sync it, and rename it once to a name made from its content.

A reader finds a complete folder or none. Each step is repeatable. Knows nothing of rows.
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

from dashboard.models.adapters.adapter import WEIGHTS
from workers.contract.errors import RunError, disk_error

TRIES = 3
RETRY_SECONDS = 0.5
CHUNK_BYTES = 16 * 1024**2
SAFETENSORS_HEADER_LIMIT = 100 * 1024**2
TARGET_EXISTS = (errno.EEXIST, errno.ENOTEMPTY)
# Called between two pieces of a long write: a large folder on a slow disk takes longer than a lease.
KeepLease = Callable[[], None]


def keep_no_lease() -> None:
    """Do nothing: the default without a lease."""


class PublishError(RunError):
    """The engine's files differ from its report, or could not be published."""

    code = "publish_failed"


def publish_adapter(
    source: Path, target: Path, files: dict[str, str], keep_lease: KeepLease = keep_no_lease
) -> None:
    """Publish a folder of exactly these files, in up to three tries.

    Raises PublishError, and DiskFull.
    """
    for left in reversed(range(TRIES)):
        try:
            if source.exists():
                check_adapter(source, files, keep_lease)
            publish_folder(source, target, keep_lease)
            check_adapter(target, files, keep_lease)
            return
        except OSError as error:
            if not left:
                reason = error.strerror or type(error).__name__
                failure = PublishError(f"The adapter could not be published: {reason}.")
                raise disk_error(error) or failure from error
            time.sleep(RETRY_SECONDS)


def publish_folder(source: Path, target: Path, keep_lease: KeepLease = keep_no_lease) -> None:
    """Sync `source`, then rename it to `target`, the name of its content. Equal content is kept once.

    After a commit that failed it may be repeated: it finds the folder in place and changes nothing.
    """
    target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    if source.exists() or not target.is_dir():
        for path in [*source.rglob("*"), source]:
            keep_lease()
            _sync(path)
        try:
            source.rename(target)
        except OSError as error:
            if error.errno not in TARGET_EXISTS:
                raise
            _repair(target, source, keep_lease)
            shutil.rmtree(source)
    _sync(target.parent)


def _repair(target: Path, source: Path, keep_lease: KeepLease) -> None:
    """Replace the files below `target` that differ from `source`: equal names stand for equal content.

    File by file, so that a reader finds each file at any moment, the old one or the new one.
    """
    expected, temporary = _files(source), source / ".repair"
    for name in sorted(_files(target) - expected):
        (target / name).unlink()
    for name in sorted(expected):
        if _are_equal(source / name, target / name, keep_lease):
            continue
        (target / name).parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        try:
            # A copy leaves the source unchanged, so that an interrupted repair can be repeated.
            shutil.copy(source / name, temporary)
            _sync(temporary)
            temporary.replace(target / name)
        finally:
            temporary.unlink(missing_ok=True)
        _sync((target / name).parent)


def _are_equal(source: Path, target: Path, keep_lease: KeepLease) -> bool:
    """Return whether the target can be read and has the same content."""
    digest = _sha256(source, keep_lease)
    try:
        return _sha256(target, keep_lease) == digest
    except OSError:
        return False


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _sha256(path: Path, keep_lease: KeepLease) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            keep_lease()
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_adapter(folder: Path, files: dict[str, str], keep_lease: KeepLease = keep_no_lease) -> None:
    """Raise PublishError unless the folder holds exactly the reported files and valid safetensors weights."""
    if WEIGHTS not in files:
        raise PublishError("The adapter folder has no weights.")
    check_files(folder, files, keep_lease)
    check_safetensors(folder / WEIGHTS)


def check_files(folder: Path, files: dict[str, str], keep_lease: KeepLease = keep_no_lease) -> None:
    """Raise PublishError unless the folder holds exactly the reported files, SHA-256 by name."""
    present = _files(folder)
    if present != set(files):
        raise PublishError(f"The folder holds other files than reported: {sorted(present ^ set(files))}.")
    for name, digest in files.items():
        if _sha256(folder / name, keep_lease) != digest:
            raise PublishError(f"The file {name} changed between writing and publishing.")


def check_safetensors(path: Path) -> None:
    """Raise PublishError unless the header (8 bytes of length, then JSON) covers the file without a gap."""
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
