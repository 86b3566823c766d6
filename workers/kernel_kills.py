"""Whether the kernel has killed a process for lack of memory, as far as Linux's own counts tell.

It counts such kills for each control group, whoever set the limit that was reached, and for the machine. A
group is a container or a service, so its count speaks of few processes; the machine's speaks of everybody's.
Each is moved before the signal is sent. Knows nothing of jobs.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
# How long a large process may take to die of a kill that has been counted.
DEATH_SECONDS = 60.0


@dataclass(slots=True)
class Kills:
    """A count, looked at while a process lives: only what moved it shortly before the death is about it."""

    file: Path
    is_own: bool  # of the process's group alone
    before: int | None = None  # at least so long ago as a death takes, but for the first seconds
    latest: int | None = None
    looked: float = field(default_factory=time.monotonic)
    last: int | None = None  # when the process had ended
    is_closed: bool = False

    @classmethod
    def around(cls, pid: int) -> Kills:
        """The narrowest count there is for this living process."""
        own = _group_file(pid)
        kills = cls(own or PROC / "vmstat", is_own=own is not None)
        kills.before = kills.latest = _count(kills.file)
        return kills

    def look(self) -> None:
        """Call it often, while the process lives."""
        now = time.monotonic()
        if not self.is_closed and now - self.looked >= DEATH_SECONDS:
            self.before, self.latest, self.looked = self.latest, _count(self.file), now

    def close(self) -> None:
        """The process has ended: what is killed from now on is somebody else."""
        if not self.is_closed:
            self.last, self.is_closed = _count(self.file), True

    @property
    def blame(self) -> bool | None:
        """Whether lack of memory was what a process died of that nobody here has killed; None: perhaps."""
        self.close()
        if self.before is None or self.last is None:
            return None
        if self.last == self.before:
            return False
        return True if self.is_own else None


def _count(file: Path) -> int | None:
    """The kills that this file counts; None where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None


def _group_file(pid: int) -> Path | None:
    """Where the process's control group counts, in either version of them; None where none is to be seen."""
    with contextlib.suppress(OSError, ValueError):
        groups = _groups(pid)
        for line in (PROC / "self" / "mountinfo").read_text().splitlines():
            mount, _, system = line.partition(" - ")
            root, point = mount.split()[3:5]
            kind, _source, options = system.split(maxsplit=2)
            if kind == "cgroup2":
                controller, name = "", "memory.events"
            elif kind == "cgroup" and "memory" in options.split(","):
                controller, name = "memory", "memory.oom_control"
            else:
                continue
            group = PurePosixPath(groups.get(controller, ""))
            if group.is_relative_to(root):
                file = Path(point) / group.relative_to(root) / name
                if _count(file) is not None:
                    return file
    return None


def _groups(pid: int) -> dict[str, str]:
    """The process's group by controller; "" stands for those of the second version."""
    found: dict[str, str] = {}
    for line in (PROC / str(pid) / "cgroup").read_text().splitlines():
        _number, controllers, group = line.split(":", 2)
        found |= dict.fromkeys(controllers.split(","), group)
    return found
