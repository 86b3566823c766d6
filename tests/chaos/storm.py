"""The fault schedule and its injection: which process is killed or paused, and when.

A fault is due when so many jobs have ended, so that no faults pile up while nothing progresses. Pauses
run one after another beside the kills: while one process is paused, others die.
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
from tests.chaos.target import Target

# Roles and their weights in the schedule.
KILLED = {"worker": 35, "pool": 15, "trainer": 25, "broker": 10, "web": 10, "dispatcher": 5}
PAUSED = {"pool": 60, "trainer": 15, "worker": 15, "dispatcher": 10}
# Connections to servers, which are broken by their proxy.
CONNECTIONS = ("DATABASE_URL", "REDIS_URL")
# Children of other processes: `manage.py start` does not restart them itself.
CHILD_ROLES = ("trainer", "pool")
# `manage.py start` stops everything when a program ends six times in a minute.
SAME_PROGRAM_SECONDS = 20.0
NO_TARGET_SECONDS = 60.0
# With fewer injected faults the table would claim more than was tested.
INJECTED_SHARE = 0.9


@dataclass(frozen=True, order=True)
class Fault:
    """A kill if `seconds` is 0, else a pause or, for a connection, an outage of that length."""

    due: int  # number of ended jobs, less than all
    delay: float  # seconds
    role: str
    pick: float  # which of the role's processes, 0 to 1
    seconds: float

    @property
    def is_pause(self) -> bool:
        return bool(self.seconds) and self.role not in CONNECTIONS


@dataclass(frozen=True)
class InjectedFault:
    """A fault that found a target. `held`: the live jobs of the process, as (job, attempt)."""

    at: float
    role: str
    pid: int
    seconds: float
    held: tuple[tuple[int, int], ...]

    @property
    def is_pause(self) -> bool:
        return bool(self.seconds) and self.role not in CONNECTIONS


def make_schedule(options: argparse.Namespace) -> list[Fault]:
    """Return all faults in the order in which they are due."""
    generator = random.Random(options.seed)
    faults = []
    for number, weights, seconds in (
        (options.kills, KILLED, 0.0),
        (options.pauses, PAUSED, options.pause_seconds),
        (options.outages, {"DATABASE_URL": 1}, options.outage_seconds),
        (options.silences, {"REDIS_URL": 1}, options.silence_seconds),
    ):
        for place in range(number):
            (role,) = generator.choices(list(weights), weights=list(weights.values()))
            due = int(0.95 * options.jobs * (place + generator.random()) / number)
            faults.append(Fault(due, generator.uniform(0, 8), role, generator.random(), seconds))
    return sorted(faults)


@dataclass
class FaultInjector:
    """Injects the schedule into the target until it is done or `stopped` is set."""

    target: Target
    schedule: list[Fault]
    count_ended: Callable[[], int]
    injected: list[InjectedFault] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    last_kill: dict[str, float] = field(default_factory=dict)

    def inject_kills(self) -> None:
        """Inject the kills and outages of the schedule."""
        self._inject_all(fault for fault in self.schedule if not fault.is_pause)

    def inject_pauses(self) -> None:
        self._inject_all(fault for fault in self.schedule if fault.is_pause)

    def missed_targets(self) -> list[str]:
        """Return the scheduled roles without an injected fault, and whether too few faults were injected."""
        scheduled = Counter((fault.role, fault.is_pause) for fault in self.schedule)
        injected = Counter((fault.role, fault.is_pause) for fault in self.injected)
        missed = [
            f"{role}: {number} {'pauses' if is_pause else 'kills'} scheduled, none injected"
            for (role, is_pause), number in scheduled.items()
            if not injected[role, is_pause]
        ]
        if injected.total() < INJECTED_SHARE * scheduled.total():
            missed.append(f"{injected.total()} of {scheduled.total()} faults injected")
        return missed

    def _inject_all(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            while self.count_ended() < fault.due:
                if self.stopped.wait(0.3):
                    return
            if self.stopped.wait(fault.delay):
                return
            if fault.role in CONNECTIONS:
                self._break_connection(fault)
            else:
                self._inject(fault)

    def _inject(self, fault: Fault) -> None:
        """Hit a process of the role, waiting a while for one to exist."""
        deadline = time.monotonic() + NO_TARGET_SECONDS
        while not self.stopped.is_set() and time.monotonic() < deadline:
            processes = self.target.processes(fault.role)
            if fault.role not in CHILD_ROLES:
                processes = [process for process in processes if self._may_be_killed(process)]
            if fault.role == "pool":
                processes = [process for process in processes if self._held(fault.role, process)] or processes
            if processes and self._hit(fault, processes[int(fault.pick * len(processes))]):
                return
            self.stopped.wait(0.1)

    def _break_connection(self, fault: Fault) -> None:
        """Silence the connection; half of the database's outages refuse connections instead."""
        proxy = self.target.proxies[fault.role]
        self.injected.append(InjectedFault(time.time(), fault.role, 0, fault.seconds, ()))
        if fault.role == "DATABASE_URL" and fault.pick < 0.5:
            proxy.refuse()
        else:
            proxy.black_hole()
        self.stopped.wait(fault.seconds)
        proxy.heal()

    def _may_be_killed(self, process: psutil.Process) -> bool:
        last = self.last_kill.get(self._program(process))
        return last is None or time.monotonic() - last > SAME_PROGRAM_SECONDS

    def _program(self, process: psutil.Process) -> str:
        with contextlib.suppress(psutil.Error):
            return process.name()
        return str(process.pid)

    def _hit(self, fault: Fault, process: psutil.Process) -> bool:
        program, held = self._program(process), self._held(fault.role, process)
        try:
            process.send_signal(signal.SIGSTOP if fault.seconds else signal.SIGKILL)
        except psutil.Error:
            return False
        if fault.seconds:
            # The process may have claimed a job between the look and the signal.
            held = tuple({*held, *self._held(fault.role, process)})
        self.injected.append(InjectedFault(time.time(), fault.role, process.pid, fault.seconds, held))
        if fault.seconds:
            self.stopped.wait(fault.seconds)
            with contextlib.suppress(ProcessLookupError):
                if process.is_running():
                    os.kill(process.pid, signal.SIGCONT)
            return True
        if fault.role not in CHILD_ROLES:
            self.last_kill[program] = time.monotonic()
        if fault.role == "broker" and self.target.broker:
            self.stopped.wait(2.0)
            self.target.broker.restart()
        return True

    def _held(self, role: str, process: psutil.Process) -> tuple[tuple[int, int], ...]:
        """Return the live jobs of the process as (job, attempt)."""
        with contextlib.suppress(psutil.Error):
            pids = [process.pid] + [child.pid for child in process.children(recursive=True)]
            if role == "trainer":
                pids.append(process.ppid())
            if role in ("worker", "pool", "trainer"):
                return tuple(Job.objects.live().filter(pid__in=pids).values_list("pk", "attempt"))
        return ()
