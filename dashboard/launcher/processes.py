"""Runs several programs as one, with prefixed output, restarts, an ordered stop and no orphans.

`Programs(...).run()` blocks until SIGINT or SIGTERM, or until a program cannot be kept alive. Each program
leads its own session and receives a signal when this process ends. It has one thread, so that its forks work.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from multiprocessing.context import ForkProcess
from types import FrameType

from honcho.colour import get_colours
from honcho.printer import Message, Printer

from dashboard.launcher.forks import SIGNALS, become

EXITS_ALLOWED = 6
EXITS_WINDOW = 60.0
PROBE_SECONDS = 0.5
OWN_NAME = "graftworks"
READ_BYTES = 65536
STOP_SECONDS = 0.05


@dataclass(frozen=True)
class Program:
    """A program to run: a command to execute, or a function to call in a fork of this process.

    Programs stop in the order of `stop_order`, with `grace` seconds before SIGKILL. `listener`: the socket on
    which it listens, which lasts over its restarts.
    """

    name: str
    run: Callable[[], object] | Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_order: int = 0
    grace: float = 10.0
    orphan_signal: int = signal.SIGKILL
    listener: socket.socket | None = None


class Child:
    """A program's process, across restarts."""

    def __init__(self, program: Program, colour: str) -> None:
        self.program = program
        self.colour = colour
        self.process: ForkProcess | None = None
        self.outputs: set[int] = set()  # pipes to read; an earlier one until all its writers have ended
        self.text = b""  # the beginning of a line
        self.swept = False
        self.exits: list[float] = []
        self.due = 0.0

    def start(self, release: Callable[[Program], None]) -> int:
        """Start the process and return the pipe to read. The kernel ties the child to the calling thread.

        `release` closes in the fork what belongs to this process or to other programs.
        """
        program, self.swept = self.program, False
        readable, output = os.pipe()
        self.outputs.add(readable)

        def main() -> None:
            release(program)
            become(f"gw-{program.name}", program.run, program.environment, output, program.orphan_signal)

        self.process = ForkProcess(target=main, name=program.name)
        # A handler of this process must not take a signal for the fork.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self.process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(output)
        return readable

    def read(self, output: int) -> list[bytes]:
        """Return the lines that can be read now. Closes the pipe at its end."""
        piece = os.read(output, READ_BYTES)
        *lines, self.text = (self.text + piece).split(b"\n")
        if not piece:
            os.close(output)
            self.outputs.discard(output)
        if self.text and (not piece or len(self.text) > READ_BYTES):
            lines, self.text = [*lines, self.text], b""
        return lines

    def alive(self) -> bool:
        """Return whether the process runs. Kills the rest of its session when it has ended."""
        if self.process is None:
            return False
        if self.process.is_alive():
            return True
        if not self.swept:
            self.swept = True
            self._kill_session(self.process)
        return False

    def _kill_session(self, process: ForkProcess) -> None:
        with suppress(ProcessLookupError, PermissionError):
            if process.pid:
                os.killpg(process.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM to the leader only: it would kill Celery's pool processes at once."""
        if self.process is not None:
            self.process.terminate()

    def kill(self) -> None:
        if self.process is not None and self.process.is_alive():
            self._kill_session(self.process)
            self.process.join()

    def schedule_restart(self, now: float) -> float | None:
        """Return the seconds until the restart (0, 1, 2, 4, 8), or None after too many exits in a minute."""
        self.exits = [moment for moment in self.exits if now - moment < EXITS_WINDOW] + [now]
        if len(self.exits) >= EXITS_ALLOWED:
            return None
        # The first exit in a minute restarts at once: the program was probably killed.
        pause = 2.0 ** (len(self.exits) - 2) if len(self.exits) > 1 else 0.0
        self.due = now + pause
        return pause


class Programs:
    """The programs that run together. Prints the greeting once, when `is_ready` first returns True."""

    def __init__(self, programs: Sequence[Program], *, is_ready: Callable[[], bool], greeting: str) -> None:
        colours = get_colours()
        names = [OWN_NAME, *(program.name for program in programs)]
        self.children = [Child(program, next(colours)) for program in programs]
        self.printer = Printer(sys.stdout, width=max(len(name) for name in names))
        self.selector = selectors.DefaultSelector()
        # Signals write to it, so that `_wait` ends at once.
        self.woken, self.waker = socket.socketpair()
        self.is_ready = is_ready
        self.greeting = greeting
        self.stop_requested_at = 0.0
        self.kill_requested = False

    def run(self) -> int:
        """Run until a signal (returns 0) or until a program keeps failing (returns 1)."""
        for end in (self.woken, self.waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        self.selector.register(self.woken, selectors.EVENT_READ)
        # Without a handler the end of a child would write nothing.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._request_stop)
        try:
            return self._watch()
        finally:
            self._stop()

    def _request_stop(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        # One Ctrl-C arrives twice: from the terminal and from make.
        if self.stop_requested_at and now - self.stop_requested_at > 1.0:
            self.kill_requested = True
        self.stop_requested_at = self.stop_requested_at or now

    def _watch(self) -> int:
        is_announced = False
        for child in self.children:
            self._start(child)
        while not self.stop_requested_at:
            for child in self.children:
                if not child.alive() and not self._revive(child):
                    return 1
            # Rarely, because the web server logs each failed probe.
            if not is_announced and (is_announced := self.is_ready()):
                self._print(self.greeting)
            paused = [child.due - time.monotonic() for child in self.children if child.process is None]
            self._wait(min([*paused, *([] if is_announced else [PROBE_SECONDS])], default=None))
        return 0

    def _start(self, child: Child) -> None:
        self.selector.register(child.start(self._release), selectors.EVENT_READ, child)

    def _release(self, program: Program) -> None:
        """Close, in the fork that becomes `program`, what it does not need."""
        self.selector.close()
        self.woken.close()
        self.waker.close()
        for child in self.children:
            for output in child.outputs:
                os.close(output)
            if child.program.listener and child.program.listener is not program.listener:
                child.program.listener.close()

    def _wait(self, seconds: float | None) -> bool:
        """Print what programs write, until a signal or for that time. Return whether there was anything."""
        events = self.selector.select(max(0.0, seconds) if seconds is not None else None)
        for key, _mask in events:
            child: Child | None = key.data
            if child is None:
                self.woken.recv(READ_BYTES)
                continue
            lines = child.read(key.fd)
            if key.fd not in child.outputs:
                self.selector.unregister(key.fd)
            for line in lines:
                self._print(Message("line", line, datetime.now(), child.program.name, child.colour))
        return bool(events)

    def _revive(self, child: Child) -> bool:
        """Restart an ended process after its pause. Return False after too many exits."""
        now = time.monotonic()
        if child.process is not None:
            code, child.process = child.process.exitcode, None
            pause = child.schedule_restart(now)
            if pause is None:
                self._log(
                    f"{child.program.name} ended {EXITS_ALLOWED} times within a minute. "
                    "Its output above shows the cause. Stopping all programs."
                )
                return False
            when = f"in {pause:.0f} s" if pause else "at once"
            self._log(f"{child.program.name} ended with code {code}, restarting {when}.")
        elif now >= child.due:
            self._start(child)
        return True

    def _stop(self) -> None:
        for child in self.children:
            if child.program.listener:
                child.program.listener.close()
        ordered = sorted(self.children, key=lambda child: child.program.stop_order)
        for _order, group in groupby(ordered, key=lambda child: child.program.stop_order):
            self._stop_group(list(group))

    def _stop_group(self, children: list[Child]) -> None:
        for child in children:
            child.terminate()
        began = time.monotonic()
        while any(child.alive() for child in children):
            for child in children:
                if self.kill_requested or time.monotonic() - began > child.program.grace:
                    child.kill()
            self._wait(STOP_SECONDS)
        while self._wait(0):
            pass

    def _log(self, text: str) -> None:
        self._print(Message("line", text, datetime.now(), OWN_NAME, None))

    def _print(self, line: Message | str) -> None:
        # Keep reading after the terminal closes: a program blocks when its pipe is full.
        with suppress(OSError):
            if isinstance(line, str):
                print(line, flush=True)
            else:
                self.printer.write(line)
