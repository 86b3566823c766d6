"""Run a program that gets a signal when its parent dies, however the parent dies.

    python tied.py PARENT_PID SIGNAL_NUMBER PROGRAM ARGUMENT…

Linux only; elsewhere it just runs the program. Standard library only, as it runs before every program.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent: int, number: int, command: list[str]) -> None:
    """Never returns: the program takes this process over and keeps the arrangement."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
        # The parent may have died before the call above, and then no signal will ever come.
        if os.getppid() != parent:
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
