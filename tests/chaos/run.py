"""One storm, from the start of the installation to the table of violations."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import psutil
from django.conf import settings
from django.db import connection

from dashboard.models import Adapter, Job
from dashboard.models.operations import retention
from tests.chaos import invariants, silence
from tests.chaos.monitor import Monitor
from tests.chaos.storm import FaultInjector, make_schedule
from tests.chaos.target import ServerBroker, Target
from tests.chaos.workload import Workload
from tests.e2e.installation import Api
from tests.proxy import Proxy

CLEAN_UP_SECONDS = 200
MAX_LINES = 20


@dataclass
class Outcome:
    """The end of a storm, beside what the database holds."""

    in_time: bool = False
    storm_seconds: float = 0.0
    total_seconds: float = 0.0
    leftovers: list[str] = field(default_factory=list)
    survivors: list[str] = field(default_factory=list)
    crashed_threads: list[str] = field(default_factory=list)
    status: int = 0


def run(
    options: argparse.Namespace, folder: Path, broker: ServerBroker | None, proxies: dict[str, Proxy]
) -> int:
    """Run a storm and return the exit status: 0 without violations."""
    began = time.monotonic()
    target = Target(folder, broker, proxies)
    try:
        api = Api(target.installation.url, create_token())
        workload = Workload(api, make_dataset(api), options.jobs, options.seed)
        monitor = Monitor(target)
        injector = FaultInjector(
            target,
            make_schedule(options),
            lambda: monitor.ended,
            monitor.injected,
        )
        outcome = Outcome()
        threading.excepthook = lambda died: outcome.crashed_threads.append(
            f"{died.thread}: {died.exc_value!r}"
        )
        # Daemons, so that an interrupted storm ends.
        functions = (monitor.run, injector.inject_kills, injector.inject_pauses, workload.submit_all)
        threads = [threading.Thread(target=function, daemon=True) for function in functions]
        workload.needs_more = lambda: any(thread.is_alive() for thread in threads[1:3])
        for thread in threads:
            thread.start()
        outcome.in_time = _wait_for_jobs(options, workload, injector, monitor, began)
        workload.stopped.set()
        injector.stopped.set()
        for thread in threads[1:]:
            thread.join()
        outcome.storm_seconds = time.monotonic() - began
        if not options.sweep:
            _wait_for_clean_up()
        monitor.stopped.set()
        threads[0].join()
        descendants = target.descendants()
        outcome.status = target.stop()
        _ended, alive = psutil.wait_procs(descendants, timeout=5)
        outcome.survivors = [f"{process.pid} {process.name()}" for process in [*alive, *target.orphans()]]
        if options.sweep:
            _sweep()
        outcome.leftovers = invariants.find_leftovers()
        outcome.total_seconds = time.monotonic() - began
    finally:
        target.kill_all()
    print(summarize(options, workload, injector, outcome))
    return report(check_invariants(workload, injector, monitor, outcome))


def create_token() -> str:
    """Create a manager and return the token that the command prints."""
    command = ["create_account", "--email", "mara@example.org", "--project", "Support", "--role", "manager"]
    done = subprocess.run(
        [sys.executable, "manage.py", *command, "--token"],
        input="correct-horse-battery",
        env=dict(os.environ),
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def make_dataset(api: Api) -> int:
    """Import forty rows before the first fault, and wait for the inspection of the bundled model."""
    lines = (f'{{"prompt": "Colour of {n}?", "completion": "{n % 4}"}}\n' for n in range(40))
    answer = api.upload("colours.jsonl", "".join(lines).encode(), name="Colours")
    assert answer.status == 202, answer.body
    dataset = api.wait(f"/datasets/{answer.json()['id']}", seconds=300)
    assert dataset["state"] == "succeeded", dataset
    deadline = time.monotonic() + 300
    while not any(model["state"] == "succeeded" for model in api.get("/base-models")["data"]):
        assert time.monotonic() < deadline, "the base model was not inspected"
        time.sleep(1)
    return int(dataset["id"])


def _wait_for_jobs(
    options: argparse.Namespace, workload: Workload, injector: FaultInjector, monitor: Monitor, began: float
) -> bool:
    """Wait until all jobs have ended; return False if that takes too long."""
    printed = 0.0
    while not workload.done.is_set() or monitor.ended < len(workload.submitted) or monitor.open_jobs:
        seconds = time.monotonic() - began
        if seconds > options.minutes * 60:
            return False
        if seconds - printed > 30:
            printed = seconds
            print(
                f"{seconds / 60:6.1f} min: {monitor.ended} of {len(workload.submitted)} jobs ended, "
                f"{len(injector.injected)} faults, {len(monitor.stalled)} stalled",
                flush=True,
            )
        time.sleep(1)
    return True


def _wait_for_clean_up() -> None:
    """Wait until the dispatcher has deleted what is left, or for CLEAN_UP_SECONDS."""
    deadline = time.monotonic() + CLEAN_UP_SECONDS
    while invariants.find_leftovers() and time.monotonic() < deadline:
        time.sleep(2)


def _sweep() -> None:
    """Delete what the dispatcher would delete after a lease. Nothing may be running."""
    retention.LEASE = timedelta()
    for _entry in retention.sweep():
        pass


def summarize(
    options: argparse.Namespace, workload: Workload, injector: FaultInjector, outcome: Outcome
) -> str:
    """Return the numbers of jobs and faults, and the recovery times."""
    faults = injector.injected
    kills = Counter(fault.role for fault in faults if not fault.seconds)
    pauses = Counter(fault.role for fault in faults if fault.is_pause)
    outages = Counter(fault.role for fault in faults if fault.seconds and not fault.is_pause)
    keys = [job.key for job in workload.submitted]
    ends = Counter(Job.objects.filter(idempotency_key__in=keys).values_list("state", flat=True))
    in_silence = invariants.submit_times_in_silence(faults, workload.submit_times)
    return "\n".join(
        [
            f"\nSeed {options.seed} on {connection.vendor}: {outcome.storm_seconds / 60:.1f} min, "
            f"with clean-up and stop {outcome.total_seconds / 60:.1f} min.",
            f"{len(keys)} jobs submitted, {_list_counts(ends)}; {Adapter.objects.count()} adapters.",
            f"{kills.total()} kills ({_list_counts(kills)}), {pauses.total()} pauses "
            f"({_list_counts(pauses)}), outages: {_list_counts(outages)}; "
            f"{len(injector.schedule) - len(faults)} faults without a target.",
            f"{invariants.count_unadopted()} published folders without a row, deleted after a day.",
            describe("trainer killed to training again", invariants.recovery_times(faults, "trainer")),
            describe("pool process killed to training again", invariants.recovery_times(faults, "pool")),
            describe("worker killed to training again", invariants.recovery_times(faults, "worker")),
            describe(
                "supervisor paused to training elsewhere",
                invariants.recovery_times(faults, "pool", paused=True),
            ),
            describe("stop requested to stopped", invariants.stop_times()),
            describe("submit", [seconds for _at, seconds in workload.submit_times], places=3),
            describe("submit while the broker was silent", in_silence, places=3),
        ]
    )


def check_invariants(
    workload: Workload, injector: FaultInjector, monitor: Monitor, outcome: Outcome
) -> dict[str, list[str]]:
    """Return the violations of each invariant."""
    faults = injector.injected
    in_silence = invariants.submit_times_in_silence(faults, workload.submit_times)
    return {
        "lost, doubled or wrongly ended jobs": invariants.find_wrong_ends(workload.submitted, faults),
        "missing, doubled or damaged adapters": invariants.find_wrong_adapters(),
        "adapters without an evaluation": invariants.find_unevaluated(),
        "curves with missing or doubled steps": invariants.find_wrong_curves(),
        "illegal moves, writes of an earlier attempt": invariants.find_illegal_moves(),
        "rows unchanged for 120 s": list(monitor.stalled),
        "processes without a parent": list(monitor.orphans.values()),
        "processes left after the stop": outcome.survivors,
        "temporary folders and checkpoints left": outcome.leftovers,
        "unsent wake-ups": invariants.find_unsent(),
        "wrong answers of the API": workload.violations,
        "slow submits while the broker was silent": silence.find_slow_submits(in_silence),
        "faults without a target": injector.missed_targets(),
        "crashed threads of the experiment": outcome.crashed_threads,
        "time limit exceeded": [] if outcome.in_time else ["some jobs had not ended"],
        "exit status of manage.py start": [] if outcome.status == 0 else [str(outcome.status)],
    }


def report(violations: dict[str, list[str]]) -> int:
    """Print the table of violations; return 1 if there are any."""
    print("\n| invariant | violations |\n| --- | --- |")
    for name, lines in violations.items():
        print(f"| {name} | {len(lines)} |")
    for name, lines in violations.items():
        for line in lines[:MAX_LINES]:
            print(f"{name}: {line}")
    return int(any(violations.values()))


def describe(name: str, seconds: list[float], places: int = 1) -> str:
    """Return count, median, p95 and maximum as text."""
    if not seconds:
        return f"{name}: none measured."
    numbers = {"median": statistics.median(seconds), "p95": silence.p95(seconds), "maximum": max(seconds)}
    figures = ", ".join(f"{word} {number:.{places}f} s" for word, number in numbers.items())
    return f"{name}: {len(seconds)} times, {figures}"


def _list_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.most_common()) or "none"
