"""The blows: which process is killed or paused, and when. The same seed makes the same schedule.

A blow is due when a share of the jobs has ended, so that the storm rests while nothing gets on. Pauses come
one after another beside the kills: while one process stands still, others die.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import psutil

from dashboard.models import Job
from tests.chaos.stage import Stage

KILLED = {"worker": 35, "pool": 15, "trainer": 25, "broker": 10, "web": 10, "dispatcher": 5}
PAUSED = {"pool": 60, "trainer": 15, "worker": 15, "dispatcher": 10}
# Not processes but the lines to the servers.
LINES = ("DATABASE_URL", "REDIS_URL")
# `manage.py start` stops everything when a program ends six times in a minute.
SAME_PROGRAM_SECONDS = 20.0
NOBODY_SECONDS = 60.0
# A storm that strikes less of what was asked for proves less than its table says.
STRUCK_SHARE = 0.9


@dataclass(frozen=True, order=True)
class Blow:
    """`seconds` 0 is a kill, else a pause, or for a line its break, of that length."""

    due: float
    wait: float
    role: str
    pick: float
    seconds: float

    @property
    def is_pause(self) -> bool:
        """Of a process; the break of a line is none."""
        return bool(self.seconds) and self.role not in LINES


@dataclass(frozen=True)
class Hit:
    """A blow that found somebody; `held`: the live jobs that it took a process from, with their attempt."""

    at: float
    role: str
    pid: int
    seconds: float
    held: tuple[tuple[int, int], ...]

    @property
    def is_pause(self) -> bool:
        """As for a blow."""
        return bool(self.seconds) and self.role not in LINES


def schedule(asked: argparse.Namespace) -> list[Blow]:
    """All blows, in the order in which they fall."""
    dice = random.Random(asked.seed)
    blows = []
    for number, shares, seconds in (
        (asked.kills, KILLED, 0.0),
        (asked.pauses, PAUSED, asked.pause_seconds),
        (asked.outages, {"DATABASE_URL": 1}, asked.outage_seconds),
        (asked.silences, {"REDIS_URL": 1}, asked.silence_seconds),
    ):
        for place in range(number):
            (role,) = dice.choices(list(shares), weights=list(shares.values()))
            due = 0.95 * (place + dice.random()) / max(1, number)
            blows.append(Blow(due, dice.uniform(0, 8), role, dice.random(), seconds))
    return sorted(blows)


@dataclass
class Storm:
    """Carries the schedule out until it is through or told to stop."""

    stage: Stage
    blows: list[Blow]
    share_ended: Callable[[], float]
    hits: list[Hit] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    last: dict[str, float] = field(default_factory=dict)

    def kill(self) -> None:
        """Kill after kill, and the breaks of lines among them."""
        self._go_through(blow for blow in self.blows if not blow.is_pause)

    def pause(self) -> None:
        """Pause after pause."""
        self._go_through(blow for blow in self.blows if blow.is_pause)

    def shortfall(self) -> list[str]:
        """What was asked for and struck nobody: roles that were spared, or too many blows in all."""
        asked = Counter((blow.role, blow.is_pause) for blow in self.blows)
        struck = Counter((hit.role, hit.is_pause) for hit in self.hits)
        spared = [
            f"{number} {'pauses' if is_pause else 'kills'} of {role} asked for, none struck"
            for (role, is_pause), number in asked.items()
            if not struck[role, is_pause]
        ]
        if struck.total() < STRUCK_SHARE * asked.total():
            spared.append(f"{struck.total()} of {asked.total()} blows struck")
        return spared

    def _go_through(self, blows: Iterable[Blow]) -> None:
        for blow in blows:
            while self.share_ended() < blow.due:
                if self.over.wait(0.3):
                    return
            if self.over.wait(blow.wait):
                return
            self._carry_out(blow)

    def _carry_out(self, blow: Blow) -> None:
        if blow.role in LINES:
            self._break(blow)
            return
        deadline = time.monotonic() + NOBODY_SECONDS
        while not self.over.is_set():
            alone = blow.role in ("trainer", "pool")
            found = [one for one in self.stage.processes(blow.role) if alone or self._may(one)]
            if blow.role == "pool":
                # One that works is worth more than one that waits.
                found = [one for one in found if self._held(blow.role, one)] or found
            if found and self._hit(blow, found[int(blow.pick * len(found))]):
                return
            if time.monotonic() > deadline:
                return
            self.over.wait(0.1)

    def _break(self, blow: Blow) -> None:
        """One line at a time: silent, or for half of the outages of a database refused."""
        line = self.stage.lines[blow.role]
        self.hits.append(Hit(time.time(), blow.role, 0, blow.seconds, ()))
        if blow.role == "DATABASE_URL" and blow.pick < 0.5:
            line.refuse()
        else:
            line.black_hole()
        self.over.wait(blow.seconds)
        line.heal()

    def _may(self, process: psutil.Process) -> bool:
        program = self._program(process)
        return time.monotonic() - self.last.get(program, -1000.0) > SAME_PROGRAM_SECONDS

    def _program(self, process: psutil.Process) -> str:
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            return command[command.index("-n") + 1] if "-n" in command else " ".join(command[:4])
        return str(process.pid)

    def _hit(self, blow: Blow, process: psutil.Process) -> bool:
        program, held = self._program(process), self._held(blow.role, process)
        try:
            process.send_signal(signal.SIGSTOP if blow.seconds else signal.SIGKILL)
        except psutil.Error:
            return False
        if blow.seconds:
            # It may have claimed one in between, and holds that until it is continued.
            held = tuple({*held, *self._held(blow.role, process)})
        self.hits.append(Hit(time.time(), blow.role, process.pid, blow.seconds, held))
        if blow.role not in ("trainer", "pool") and not blow.seconds:
            self.last[program] = time.monotonic()
        if blow.seconds:
            self._continue(process, blow.seconds)
        elif blow.role == "broker" and self.stage.broker:
            self.over.wait(2.0)
            self.stage.broker.restart()
        return True

    def _held(self, role: str, process: psutil.Process) -> tuple[tuple[int, int], ...]:
        """The live jobs of that process."""
        with contextlib.suppress(psutil.Error):
            pids = [process.pid] + [child.pid for child in process.children(recursive=True)]
            if role == "trainer":
                pids.append(process.ppid())
            if role in ("worker", "pool", "trainer"):
                return tuple(Job.objects.live().filter(pid__in=pids).values_list("pk", "attempt"))
        return ()

    def _continue(self, process: psutil.Process, seconds: float) -> None:
        self.over.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            if process.is_running():
                os.kill(process.pid, signal.SIGCONT)
