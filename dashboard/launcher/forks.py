"""Forks of the launcher: a program that shares the memory of what this process has imported.

Linux's copy-on-write keeps one copy of a page until a process writes to it. A program of another kind is
executed in its fork. Either receives a signal when this process ends for any reason.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import parent_process

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # linux/prctl.h
NAME_BYTES = 15
M_ARENA_MAX = -8  # malloc.h
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)  # handled by this process
IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)  # by every Python


def prepare_memory() -> None:
    """Keep memory shareable. Call it when everything is imported, and before the first fork."""
    if sys.platform == "linux":
        # glibc would keep the freed memory of up to eight threads per core.
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
    # The collector would write into each object that the programs share.
    gc.collect()
    gc.freeze()


def become(
    name: str,
    run: Callable[[], object] | Sequence[str],
    environment: Mapping[str, str],
    output: int,
    orphan_signal: int,
) -> None:
    """Turn this fork into a program: call `run`, or execute it. `output` gets all that it writes."""
    os.setsid()
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl(PR_SET_PDEATHSIG, orphan_signal, 0, 0, 0)
        prctl(PR_SET_NAME, name.encode()[:NAME_BYTES], 0, 0, 0)
        # If the parent ended before prctl, no signal will come.
        parent = parent_process()
        if parent is None or os.getppid() != parent.pid:
            sys.exit(1)
    for number, stream in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(stream, number)
    os.close(output)
    signal.set_wakeup_fd(-1)
    for number in SIGNALS if callable(run) else (*SIGNALS, *IGNORED):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if not callable(run):
        os.execvpe(run[0], list(run), environment)  # noqa: S606
    os.environ.clear()
    os.environ.update(environment)
    # The pipe is no terminal, and its reader waits for whole lines.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run()
