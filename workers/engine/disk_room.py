"""Whether the disk has room for the checkpoints of a run, before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from workers.errors import DiskFull
from workers.specs import TrainSpec

# fp32: the weight, Adam's two moments and the weight at its best.
BYTES_PER_PARAMETER = 16
# Bytes that stay free for the database, the logs and the other programs.
RESERVE = 2 * 10**9


def check_room(folder: Path, specs: Sequence[TrainSpec], reserve: int) -> None:
    """Refuse a run whose checkpoints would fill the disk: two are kept while a third is written."""
    needed = 3 * BYTES_PER_PARAMETER * sum(spec.target.trainable_parameters for spec in specs)
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    # What an earlier attempt has written is room that this one need not find.
    kept = sum(path.stat().st_size for path in folder.glob("[0-9]*/*"))
    if free < max(0, needed - kept) + reserve:
        raise DiskFull(
            f"This run needs {_gigabytes(needed + reserve)} of disk space, {_gigabytes(needed)} for its "
            f"checkpoints and {_gigabytes(reserve)} to spare, and only {_gigabytes(free)} are free."
        )


def _gigabytes(count: int) -> str:
    return f"{count / 10**9:,.2f} GB"
