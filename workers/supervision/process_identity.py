"""Identify processes by pid, start time and place, because pids are reused.

The start time counts from the boot of the machine, because the wall clock may be changed. A pid is valid only
in its place: one boot of one machine, one PID namespace, one account.
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
# The kernel's fixed number of the namespace outside of all containers.
OUTERMOST = "pid:[4026531836]"
# More seconds than a machine runs. With 16 bits of the boot above them a double is exact to 0.01 s.
SPAN = 1e9


@dataclass(frozen=True, slots=True)
class Place:
    """The scope of a pid. Host names are no proof: two containers may share one."""

    machine: str  # the same after a reboot of the machine, where that can be known
    boot: str

    def __str__(self) -> str:
        return f"{self.machine}/{self.boot}"

    @property
    def tag(self) -> str:
        """Return a short suffix that makes names unique across places."""
        return self.machine.rpartition("/")[2]

    @property
    def earlier_starts(self) -> str:
        """Return the prefix that all places of this machine share."""
        return f"{self.machine}/"


def here() -> Place | None:
    """Return this process's place; None if unknown, so that its jobs are released by their lease alone."""
    try:
        boot, namespace = BOOT_ID.read_text().strip(), os.readlink(PID_NAMESPACE)
        # If a namespace kept its parent's /proc, the pids there are not those of this process.
        if os.readlink("/proc/self") != str(os.getpid()):
            return None
    except OSError:
        return None
    machine_id = MACHINE_ID.read_text().strip() if MACHINE_ID.is_file() else ""
    # Containers take the machine id from their image, and their namespaces get new numbers at each boot.
    lasting = machine_id if namespace == OUTERMOST and machine_id else boot
    machine = _digest(lasting, namespace, str(os.getuid()))
    return Place(f"{socket.gethostname()[:60]}/{machine}", _digest(boot))


def uptime() -> float:
    """Return the seconds since the boot of the machine, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def birth(pid: int) -> float | None:
    """Return a process's start time as a number unique across boots of this machine; None if it is gone."""
    with contextlib.suppress(psutil.Error):
        since_boot: float = psutil.Process(pid).create_time() - psutil.boot_time()
        return _boot_number() * SPAN + since_boot
    return None


def living(pid: int | None, born: float | None) -> psutil.Process | None:
    """Return the process of this place with that pid and start time, if it still runs."""
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
