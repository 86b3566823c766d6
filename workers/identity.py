"""Which process a number means. Numbers are given away again, so the moment of its birth belongs to each.

That moment counts from the start of the machine: the clock of the day may be set while a process lives. And
numbers mean nothing outside their own place: one start of one machine, one PID namespace, one account.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MACHINE_ID = Path("/etc/machine-id")
PID_NAMESPACE = Path("/proc/self/ns/pid")
# The kernel's own number of the namespace that is no container's.
OUTERMOST = "pid:[4026531836]"
# More seconds than a machine runs; 16 bits of its start above them leave a double exact to the hundredth.
SPAN = 1e9


@dataclass(frozen=True, slots=True)
class Place:
    """Where process numbers mean the same. Host names are no proof: two containers may share one."""

    machine: str  # the same after a restart of the machine, where that can be known
    boot: str

    def __str__(self) -> str:
        return f"{self.machine}/{self.boot}"

    @property
    def tag(self) -> str:
        """Short and the same as long as the machine's name for this place: tells things of one name apart."""
        return self.machine.rpartition("/")[2]

    @property
    def earlier_starts(self) -> str:
        """How the names of this machine's places begin."""
        return f"{self.machine}/"


def here() -> Place | None:
    """This process's place; None where it cannot be told, so that nobody there judges or is judged."""
    try:
        boot, namespace = BOOT_ID.read_text().strip(), os.readlink(PID_NAMESPACE)
        # In a namespace that kept its parent's /proc the numbers there are not ours.
        if os.readlink("/proc/self") != str(os.getpid()):
            return None
    except OSError:
        return None
    known = MACHINE_ID.read_text().strip() if MACHINE_ID.is_file() else ""
    # Machine ids of containers come with their image, and namespaces are numbered anew at each start.
    lasting = known if namespace == OUTERMOST and known else boot
    machine = _digest(lasting, namespace, str(os.getuid()))
    return Place(f"{socket.gethostname()[:60]}/{machine}", _digest(boot))


def uptime() -> float:
    """Seconds since this start of the machine, also those that it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def birth(pid: int) -> float | None:
    """When a process began, as a number that no other start of this machine has; None where there is none."""
    with contextlib.suppress(psutil.Error):
        since_boot: float = psutil.Process(pid).create_time() - psutil.boot_time()
        return _boot_number() * SPAN + since_boot
    return None


def living(pid: int | None, born: float | None) -> psutil.Process | None:
    """That very process of this place, if it still runs."""
    if not pid or born is None:
        return None
    now = birth(pid)
    if now is None or abs(now - born) >= 1:
        return None
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return process if process.status() != psutil.STATUS_ZOMBIE else None
    return None


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _boot_number() -> int:
    with contextlib.suppress(OSError):
        return zlib.crc32(BOOT_ID.read_bytes()) % 2**16
    return 0
