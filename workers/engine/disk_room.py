"""Check before a run that the disk has room for its checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from workers.contract.errors import DiskFull
from workers.contract.specs import TrainSpec

# fp32: the weight, Adam's two moments and the best weight.
BYTES_PER_PARAMETER = 16
# Bytes to leave free for the database, the logs and other programs.
RESERVE = 2 * 10**9


def check_room(folder: Path, specs: Sequence[TrainSpec], reserve: int) -> None:
    """Raise DiskFull if the run's checkpoints would fill the disk: two are kept while a third is written.

    `reserve`: bytes that must stay free.
    """
    needed = 3 * BYTES_PER_PARAMETER * sum(spec.target.trainable_parameters for spec in specs)
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    # An earlier attempt's checkpoints are replaced by this one's.
    written = sum(path.stat().st_size for path in folder.glob("[0-9]*/*"))
    if free < max(0, needed - written) + reserve:
        raise DiskFull(
            f"This run needs {_gigabytes(needed + reserve)} of disk space, {_gigabytes(needed)} for its "
            f"checkpoints and {_gigabytes(reserve)} in reserve, but only {_gigabytes(free)} are free."
        )


def _gigabytes(count: int) -> str:
    return f"{count / 10**9:,.2f} GB"
