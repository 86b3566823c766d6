"""Runs several programs as one, with prefixed output, restarts, an ordered stop and no orphans.

`Programs(...).run()` blocks until SIGINT or SIGTERM, or until a program cannot be kept alive. Each program
leads its own session and receives a signal when this process ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path
from types import FrameType

from honcho.colour import get_colours
from honcho.printer import Message, Printer
from honcho.process import Popen

TIED = Path(__file__).with_name("tied.py")
EXITS_ALLOWED = 6
EXITS_WINDOW = 60.0
PROBE_SECONDS = 0.5
OWN_NAME = "graftworks"


@dataclass(frozen=True)
class Program:
    """A program to run. Programs stop in the order of `stop_order`, with `grace` seconds before SIGKILL."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_order: int = 0
    grace: float = 10.0
    orphan_signal: int = signal.SIGKILL


class Child:
    """A program's process, across restarts."""

    def __init__(self, program: Program, colour: str) -> None:
        self.program = program
        self.colour = colour
        self.process: subprocess.Popen[bytes] | None = None
        self.reader = threading.Thread()
        self.swept = False
        self.exits: list[float] = []
        self.due = 0.0

    def start(self, write: Callable[[Child, bytes], None]) -> None:
        """Start the process. Call it in the main thread, to which the kernel ties the child."""
        tied = [sys.executable, "-I", "-S", str(TIED), str(os.getpid()), str(int(self.program.orphan_signal))]
        self.swept = False
        self.process = process = Popen(
            [*tied, *self.program.command],
            shell=False,
            env=dict(self.program.environment),
            stdin=subprocess.DEVNULL,
        )
        self.reader = threading.Thread(target=self._forward, args=(process, write), daemon=True)
        self.reader.start()

    def _forward(self, process: subprocess.Popen[bytes], write: Callable[[Child, bytes], None]) -> None:
        for line in process.stdout or ():
            write(self, line)

    def alive(self) -> bool:
        """Return whether the process runs. Kills the rest of its session when it has ended."""
        if self.process is None:
            return False
        if self.process.poll() is None:
            return True
        if not self.swept:
            self.swept = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        return False

    def terminate(self) -> None:
        """Send SIGTERM to the leader only: it would kill Celery's pool processes at once."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

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
        self.printing = threading.Lock()
        self.is_ready = is_ready
        self.greeting = greeting
        self.stop_requested_at = 0.0
        self.kill_requested = False

    def run(self) -> int:
        """Run until a signal (returns 0) or until a program keeps failing (returns 1)."""
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
        announced, probe_at = False, 0.0
        for child in self.children:
            child.start(self._write)
        while not self.stop_requested_at:
            for child in self.children:
                if not child.alive() and not self._revive(child):
                    return 1
            # Rarely, because the web server logs each failed probe.
            if not announced and time.monotonic() >= probe_at:
                probe_at = time.monotonic() + PROBE_SECONDS
                announced = self.is_ready()
                if announced:
                    self._print(self.greeting)
            time.sleep(0.2)
        return 0

    def _revive(self, child: Child) -> bool:
        """Restart an ended process after its pause. Return False after too many exits."""
        now = time.monotonic()
        if child.process is not None:
            code, child.process = child.process.returncode, None
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
            child.start(self._write)
        return True

    def _stop(self) -> None:
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
            time.sleep(0.05)
        for child in children:
            if child.reader.is_alive():
                child.reader.join(timeout=1)

    def _log(self, text: str) -> None:
        self._print(Message("line", text, datetime.now(), OWN_NAME, None))

    def _write(self, child: Child, line: bytes) -> None:
        self._print(Message("line", line, datetime.now(), child.program.name, child.colour))

    def _print(self, line: Message | str) -> None:
        # Keep reading after the terminal closes: a program blocks when its pipe is full.
        with self.printing, suppress(OSError):
            if isinstance(line, str):
                print(line, flush=True)
            else:
                self.printer.write(line)
