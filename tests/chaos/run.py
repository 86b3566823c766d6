"""One storm from the first page to the verdict."""

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
from pathlib import Path

import psutil
from django.conf import settings
from django.db import connection

from dashboard.models import Adapter, Job
from tests.chaos import silence, verdict
from tests.chaos.stage import ServerBroker, Stage
from tests.chaos.storm import Storm, schedule
from tests.chaos.watch import Watch
from tests.chaos.work import Work
from tests.e2e.installation import Api
from tests.proxy import Proxy

QUIET_SECONDS = 200
SHOWN = 20


@dataclass
class Ending:
    """How it ended, beside what is in the database."""

    in_time: bool = False
    stormed: float = 0.0
    took: float = 0.0
    left: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    status: int = 0


def run(asked: argparse.Namespace, folder: Path, broker: ServerBroker | None, lines: dict[str, Proxy]) -> int:
    """The exit status: 0 when the verdict is clean."""
    began = time.monotonic()
    stage = Stage(folder, broker, lines)
    try:
        api = Api(stage.installation.url, token(stage))
        work = Work(api, make_dataset(api), asked.jobs, asked.seed)
        watch = Watch(stage)
        storm = Storm(stage, schedule(asked), lambda: watch.ended / max(1, asked.jobs), watch.hits)
        ending = Ending()
        threading.excepthook = lambda died: ending.crashes.append(f"{died.thread}: {died.exc_value!r}")
        # Daemons, so that a storm that is broken off ends.
        acts = (watch.run, storm.kill, storm.pause, work.submit_all)
        threads = [threading.Thread(target=act, daemon=True) for act in acts]
        for thread in threads:
            thread.start()
        ending.in_time = _wait(asked, work, storm, watch, began)
        for each in (work, storm):
            each.over.set()
        for thread in threads[1:]:
            thread.join()
        ending.stormed = time.monotonic() - began
        ending.left = _until_quiet()
        watch.over.set()
        threads[0].join()
        family = stage.family()
        ending.status = stage.stop()
        _gone, orphans = psutil.wait_procs(family, timeout=5)
        ending.orphans = [f"{one.pid} {one.name()}" for one in [*orphans, *stage.strays()]]
        ending.took = time.monotonic() - began
    finally:
        stage.kill_all()
    print(facts(asked, work, storm, ending))
    return judge(checks(work, storm, watch, ending))


def token(stage: Stage) -> str:
    """A manager's token, as the command prints it."""
    command = ["create_account", "--email", "mara@example.org", "--project", "Support", "--role", "manager"]
    said = subprocess.run(
        [sys.executable, "manage.py", *command, "--token"],
        input="correct-horse-battery",
        env=dict(os.environ),
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        check=True,
    )
    return said.stdout.strip()


def make_dataset(api: Api) -> int:
    """Forty rows, imported before the storm; the bundled model is inspected meanwhile."""
    lines = (f'{{"prompt": "Colour of {n}?", "completion": "{n % 4}"}}\n' for n in range(40))
    sent = api.upload("colours.jsonl", "".join(lines).encode(), name="Colours")
    assert sent.status == 202, sent.body
    found = api.wait(f"/datasets/{sent.json()['id']}", seconds=300)
    assert found["state"] == "succeeded", found
    deadline = time.monotonic() + 300
    while not any(one["state"] == "succeeded" for one in api.get("/base-models")["data"]):
        assert time.monotonic() < deadline, "the tiny model is not inspected"
        time.sleep(1)
    return int(found["id"])


def _wait(asked: argparse.Namespace, work: Work, storm: Storm, watch: Watch, began: float) -> bool:
    """Until everything asked for has ended; False when it takes too long."""
    told = 0.0
    while not work.done.is_set() or watch.ended < len(work.asked) or watch.open_jobs:
        if time.monotonic() - began > asked.minutes * 60:
            return False
        if time.monotonic() - told > 30:
            told = time.monotonic()
            minutes = (told - began) / 60
            print(
                f"{minutes:6.1f} min: {watch.ended} of {len(work.asked)} asked jobs ended, "
                f"{len(storm.hits)} blows, {len(watch.stuck)} stuck",
                flush=True,
            )
        time.sleep(1)
    return True


def _until_quiet() -> list[str]:
    """What is left after the time in which the dispatcher clears."""
    deadline = time.monotonic() + QUIET_SECONDS
    while left := verdict.leftovers():
        if time.monotonic() > deadline:
            return left
        time.sleep(2)
    return []


def facts(asked: argparse.Namespace, work: Work, storm: Storm, ending: Ending) -> str:
    """What was done, and how long recoveries took."""
    kills = Counter(hit.role for hit in storm.hits if not hit.seconds)
    pauses = Counter(hit.role for hit in storm.hits if hit.is_pause)
    breaks = Counter(hit.role for hit in storm.hits if hit.seconds and not hit.is_pause)
    keys = [one.key for one in work.asked]
    ends = Counter(Job.objects.filter(idempotency_key__in=keys).values_list("state", flat=True))
    return "\n".join(
        [
            f"\nSeed {asked.seed} on {connection.vendor}: {ending.stormed / 60:.1f} min, with cleaning and "
            f"stop {ending.took / 60:.1f} min.",
            f"{len(keys)} jobs acknowledged, {_words(ends)}; {Adapter.objects.count()} adapters.",
            f"{kills.total()} kills ({_words(kills)}), {pauses.total()} pauses ({_words(pauses)}), "
            f"lines broken: {_words(breaks)}; {len(storm.blows) - len(storm.hits)} blows found nobody.",
            f"{len(verdict.unadopted())} published folders without a row, removed after a day.",
            figures("trainer killed to training again", verdict.recoveries(storm.hits, "trainer")),
            figures("pool process killed to training again", verdict.recoveries(storm.hits, "pool")),
            figures("worker killed to training again", verdict.recoveries(storm.hits, "worker")),
            figures(
                "supervisor paused to training elsewhere", verdict.recoveries(storm.hits, "pool", paused=True)
            ),
            figures("asked to stop to stopped", verdict.stop_times()),
            figures("submitting", [seconds for _at, seconds in work.submitted], places=3),
            figures(
                "submitting while the broker was silent", verdict.during(storm.hits, work.submitted), places=3
            ),
        ]
    )


def checks(work: Work, storm: Storm, watch: Watch, ending: Ending) -> dict[str, list[str]]:
    """Each thing that must not be, with what was found of it."""
    return {
        "lost or wrong end": verdict.wrong_ends(work.asked, storm.hits),
        "adapters missing, double or damaged": verdict.adapter_faults(),
        "adapters that nobody was asked to score": verdict.unscored(),
        "curves with gaps or doubles": verdict.curve_faults(),
        "moves that no table lists, writes of an earlier attempt": verdict.illegal_moves(),
        "rows that stood still for 120 s": list(watch.stuck),
        "processes without a master": list(watch.strays.values()),
        "processes left after the stop": ending.orphans,
        "temporary folders and checkpoints left": ending.left,
        "wake-ups not sent": verdict.unsent(),
        "wrong answers of the API": work.complaints,
        "submits held up by a silent broker": silence.held_up(
            verdict.during(storm.hits, work.submitted) if silence.IS_JUDGED else []
        ),
        "blows that struck nobody": storm.shortfall(),
        "threads of the harness that died": ending.crashes,
        "not over in time": [] if ending.in_time else ["some jobs had not ended"],
        "exit status of manage.py start": [] if ending.status == 0 else [str(ending.status)],
    }


def judge(found: dict[str, list[str]]) -> int:
    """Print the table; 1 when anything was found."""
    print("\n| must not be | found |\n| --- | --- |")
    for name, lines in found.items():
        print(f"| {name} | {len(lines)} |")
    for name, lines in found.items():
        for line in lines[:SHOWN]:
            print(f"{name}: {line}")
    return int(any(found.values()))


def figures(name: str, seconds: list[float], places: int = 1) -> str:
    """Count, median, p95 and longest, in words."""
    if not seconds:
        return f"{name}: none measured."
    p95 = silence.p95(seconds)
    numbers = (("median", statistics.median(seconds)), ("p95", p95), ("longest", max(seconds)))
    return f"{name}: {len(seconds)} times, " + ", ".join(f"{word} {n:.{places}f} s" for word, n in numbers)


def _words(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.most_common()) or "none"
