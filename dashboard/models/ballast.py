"""A file that only takes space: deleted when the disk is full, so that database and logs can go on.

Made again when there is plenty of room. Knows nothing of rows, because the database is what it protects.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from django.conf import settings

logger = logging.getLogger(__name__)
NAME = "ballast"
# With less than this the disk counts as full.
FULL_BYTES = 64 * 1024**2
# Free space beside the file, in its own sizes, before it is made: it must not be what fills the disk.
PLENTY = 8


def path() -> Path:
    """Where it lies."""
    return Path(settings.DATA_DIR) / NAME


def is_in_place() -> bool:
    """Whether there is something to drop."""
    return path().is_file()


def drop_when_full() -> bool:
    """Delete it if the disk is full; whether that was done."""
    if not is_in_place() or shutil.disk_usage(settings.DATA_DIR).free >= FULL_BYTES:
        return False
    path().unlink(missing_ok=True)
    logger.warning("the disk is full: the reserve of %s MB is freed", settings.BALLAST_BYTES // 1024**2)
    return True


def has_room() -> bool:
    """Whether the disk has plenty of room for it."""
    wanted: int = PLENTY * settings.BALLAST_BYTES + FULL_BYTES
    return shutil.disk_usage(settings.DATA_DIR).free >= wanted


def restore() -> bool:
    """Make it if there is none and the disk has plenty of room; whether that was done."""
    wanted = settings.BALLAST_BYTES
    if not wanted or is_in_place() or not has_room():
        return False
    aside = path().with_name(f".{NAME}")
    try:
        with aside.open("wb") as file:
            # Really allocated, not only promised.
            os.posix_fallocate(file.fileno(), 0, wanted)
    except OSError as error:
        aside.unlink(missing_ok=True)
        logger.warning("the reserve could not be made: %s", error.strerror)
        return False
    aside.replace(path())
    return True
