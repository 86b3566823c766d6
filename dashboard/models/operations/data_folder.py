"""Lists, measures and deletes entries below DATA_DIR. Follows no link and touches nothing outside.

Knows nothing of rows, except that a name may contain a job's number.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path

from django.conf import settings

# Prefix of an entry that is being deleted, so that no reader finds it half deleted after a crash.
DELETING = ".removing-"
BATCH = 200


def entries(kind: str, prefix: str = "") -> Iterator[Path]:
    """Yield a folder's entries by prefix. Skips links, and without a prefix also hidden entries."""
    folder = Path(settings.DATA_DIR) / kind
    # A linked folder may be shared with other programs, so it is never cleaned up.
    if not is_plain_folder(folder) or folder.resolve() != folder:
        return
    with os.scandir(folder) as listing:
        names = sorted(entry.name for entry in listing if not entry.is_symlink())
    for name in names:
        if name.startswith(prefix) and (prefix or not name.startswith(".")):
            yield folder / name


def batches(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Yield lists of at most BATCH paths, so that one query serves all of them."""
    rest = iter(paths)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch


def job_number(path: Path) -> int:
    """Return the job's primary key from the entry's name, or 0."""
    match = re.match(r"job-(\d{1,18})(?!\d)", path.name)
    return int(match.group(1)) if match else 0


def age(path: Path) -> timedelta:
    """Return the time since the last write; 0 for a missing entry."""
    try:
        return timedelta(seconds=max(0.0, time.time() - path.lstat().st_mtime))
    except FileNotFoundError:
        return timedelta()


def is_plain_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def hide(path: Path) -> Path:
    """Rename an entry so that no reader finds it. Pass the returned path to `erase`."""
    hidden = path.with_name(f"{DELETING}{path.name}")
    erase(hidden)
    path.rename(hidden)
    return hidden


def erase(path: Path) -> None:
    """Delete a file or folder. Of a link, delete only the link."""
    if is_plain_folder(path):
        # rmtree is safe against links that appear meanwhile. The next round retries what remains.
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def size(path: Path) -> int:
    """Return the bytes of a file or of all files below a folder. Files deleted meanwhile count 0."""
    try:
        if not is_plain_folder(path):
            return path.lstat().st_size
        with os.scandir(path) as listing:
            return sum(size(Path(entry.path)) for entry in listing)
    except FileNotFoundError:
        return 0
