"""Which process a number means. Numbers are given away again, so the moment of its birth belongs to each.

That moment counts from the start of the machine: the clock of the day may be set while a process lives.
"""

from __future__ import annotations

import contextlib
import zlib
from pathlib import Path

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# More seconds than a machine runs; 16 bits of its start above them leave a double exact to the hundredth.
SPAN = 1e9


def birth(pid: int) -> float | None:
    """When a process began, as a number that no other start of this machine has; None where there is none."""
    with contextlib.suppress(psutil.Error):
        since_boot: float = psutil.Process(pid).create_time() - psutil.boot_time()
        return _boot_number() * SPAN + since_boot
    return None


def living(pid: int | None, born: float | None) -> psutil.Process | None:
    """That very process, if it still runs."""
    if not pid or born is None:
        return None
    now = birth(pid)
    if now is None or abs(now - born) >= 1:
        return None
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return process if process.status() != psutil.STATUS_ZOMBIE else None
    return None


def _boot_number() -> int:
    with contextlib.suppress(OSError):
        return zlib.crc32(BOOT_ID.read_bytes()) % 2**16
    return 0
