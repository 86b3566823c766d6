"""A child process with limits on processor time and memory, for programs in somebody else's files.

It is a fork, so it starts within milliseconds and shares what is loaded. The kernel ends it at its limits,
also inside of a library that never looks at the time. It must not use the device or the threads of torch.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

TIME, MEMORY = "time", "memory"


class LimitExceeded(Exception):
    """The child needed more than it may. `limit`: TIME or MEMORY."""

    def __init__(self, limit: str) -> None:
        super().__init__(limit)
        self.limit = limit


class LimitedProcess:
    """Answers requests, one at a time, in a child that starts with the first one. Both are JSON values.

    `memory`: bytes by which the child may grow; `has_children`: it starts such processes of its own.
    A context manager, at whose end the child ends.
    """

    def __init__(self, answer: Callable[[Any], Any], memory: int, *, has_children: bool = False) -> None:
        self.answer = answer
        self.memory = memory
        self.has_children = has_children
        self.process: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None

    def ask(self, request: Any, seconds: float) -> Any:
        """Return the answer; raise LimitExceeded if it takes more processor seconds, or too much memory."""
        if self.process is None:
            self._start()
        try:
            self.pipe.send_bytes(json.dumps([request, seconds]).encode())
            answer = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError) as error:
            self.process.join()
            is_late = self.process.exitcode == -signal.SIGPROF
            raise LimitExceeded(TIME if is_late else MEMORY) from error
        if answer is None:
            raise LimitExceeded(MEMORY)
        return answer[0]

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, end = context.Pipe()
        arguments = (end, self.pipe)
        # Python lets no daemon have children, and ends a daemon with its parent.
        self.process = context.Process(target=self._serve, args=arguments, daemon=not self.has_children)
        self.process.start()
        end.close()

    def _serve(self, pipe: Connection, parent_end: Connection) -> None:
        # Else the child would keep its own input open after the death of its parent.
        parent_end.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        _limit_memory(self.memory)
        while True:
            try:
                request, seconds = json.loads(pipe.recv_bytes())
            except EOFError:
                return
            signal.setitimer(signal.ITIMER_PROF, seconds)
            try:
                reply = json.dumps([self.answer(request)]).encode()
            except MemoryError:
                reply = b"null"
            pipe.send_bytes(reply)
            signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(extra: int) -> None:
    """Let the address space grow by at most `extra` bytes. Only Linux reports the current size."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    allowed = int(statm.read_text().split()[0]) * resource.getpagesize() + extra
    if hard != resource.RLIM_INFINITY:
        allowed = min(allowed, hard)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
