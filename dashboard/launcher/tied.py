"""Run a program that receives a signal when its parent process ends for any reason.

    python tied.py PARENT_PID SIGNAL_NUMBER PROGRAM ARGUMENT…

Linux only; elsewhere it just runs the program. Standard library only, as it runs before every program.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent: int, number: int, command: list[str]) -> None:
    """Replace this process with the program. The signal setting survives exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
        # If the parent ended before prctl, no signal will come.
        if os.getppid() != parent:
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
