"""What lies below DATA_DIR, looked at and deleted with care: no link is followed, nothing outside is touched.

Knows nothing of rows, except that a name may carry a job's number.
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

# A thing on its way out: under this name nothing looks for it, and a crash leaves nothing half deleted.
ASIDE = ".removing-"
BATCH = 200


def entries(kind: str, prefix: str = "") -> Iterator[Path]:
    """What lies in a folder of DATA_DIR under such names; no links, and hidden things only if asked for."""
    folder = Path(settings.DATA_DIR) / kind
    # A part of the data that a link moves to another disk is its owner's to clear.
    if not is_plain_folder(folder) or folder.resolve() != folder:
        return
    with os.scandir(folder) as found:
        names = sorted(one.name for one in found if not one.is_symlink())
    for name in names:
        if name.startswith(prefix) and (prefix or not name.startswith(".")):
            yield folder / name


def batches(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """A few at a time, so that one query serves all of them."""
    rest = iter(paths)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch


def job_number(path: Path) -> int:
    """Whose it is, by its name; 0 for nobody's."""
    found = re.match(r"job-(\d{1,18})(?!\d)", path.name)
    return int(found.group(1)) if found else 0


def age(path: Path) -> timedelta:
    """Since it was last written; nothing for what is not there."""
    try:
        return timedelta(seconds=max(0.0, time.time() - path.lstat().st_mtime))
    except FileNotFoundError:
        return timedelta()


def unused(path: Path) -> timedelta:
    """Since it was last written, or last marked as read."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return timedelta()
    return timedelta(seconds=max(0.0, time.time() - max(about.st_mtime, about.st_atime)))


def is_plain_folder(path: Path) -> bool:
    """Whether it is a folder and no link to one."""
    return path.is_dir() and not path.is_symlink()


def set_aside(path: Path) -> Path:
    """Take it out of everybody's sight by one rename; `erase` what this returns."""
    hidden = path.with_name(f"{ASIDE}{path.name}")
    erase(hidden)
    path.rename(hidden)
    return hidden


def erase(path: Path) -> None:
    """Delete a file or a folder. Of a link only the link goes."""
    if is_plain_folder(path):
        # Safe against links that appear meanwhile; what cannot be deleted now is tried again next time.
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what vanishes meanwhile counts as nothing."""
    try:
        if not is_plain_folder(path):
            return path.lstat().st_size
        with os.scandir(path) as found:
            return sum(size(Path(one.path)) for one in found)
    except FileNotFoundError:
        return 0
