"""Every test, in three parts: before each one what it is and how long it takes, at the end what failed.

python -m tests                 what `make test` runs
python -m tests quick           one part or several, by name
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import servers
from tests.report import FAILURES

PYTEST = (sys.executable, "-m", "pytest", "-q", "-n", "2")
SERVERS = (sys.executable, "-m", "tests.servers")


@dataclass(frozen=True)
class Part:
    """Some of the tests, and how they are run; `minutes` on two cores that do nothing else."""

    name: str
    what: str
    minutes: int
    command: tuple[str, ...]


PARTS = (
    Part("quick", "pages, API, rules, and the engine on tiny models", 8, (*PYTEST, "-m", "not slow")),
    Part(
        "slow",
        "browsers, brokers, real trainings, and a short storm of kills",
        19,
        # As `tests/sharing.py` says.
        (*PYTEST, "--dist", "loadscope", "-m", "slow"),
    ),
    Part(
        "jobs",
        "queue, workers and recovery once more, on PostgreSQL with Valkey or Redis",
        7,
        (*SERVERS, *PYTEST, "-m", "jobs", "tests/dashboard", "tests/workers"),
    ),
)


def main(names: Sequence[str]) -> int:
    """0 when every test of every part has passed."""
    known = {part.name: part for part in PARTS}
    if unknown := set(names) - set(known):
        print(f"There is no part {', '.join(sorted(unknown))}. Known: {', '.join(known)}.", file=sys.stderr)
        return 1
    chosen = [known[name] for name in names] or list(PARTS)
    began, failed = time.monotonic(), dict[str, list[str]]()
    print(f"About {sum(part.minutes for part in chosen)} minutes on two quiet cores.", flush=True)
    for place, part in enumerate(chosen, start=1):
        say(f"Part {place} of {len(chosen)}, {part.name}: {part.what} (about {part.minutes} min)")
        status, tests = run(part)
        if status:
            failed[part.name] = tests
    say(f"All of it took {minutes_of(time.monotonic() - began)}")
    print(summary(failed))
    if missing := servers.what_is_missing():
        print(f"Not run on PostgreSQL: {missing}")
    return int(bool(failed))


def run(part: Part) -> tuple[int, list[str]]:
    """How it ended, and the tests in it that failed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder) / "failed"
        environment = {**os.environ, FAILURES: str(names)}
        status = subprocess.run(part.command, env=environment, check=False).returncode
        failed = names.read_text().splitlines() if names.exists() else []
    print(f"Part {part.name} took {minutes_of(time.monotonic() - began)}.", flush=True)
    return status, failed


def summary(failed: dict[str, list[str]]) -> str:
    """What failed, and how to run one of these tests alone."""
    if not failed:
        return "Everything passed."
    lines = ["Failed. What each test said stands above, at the end of its part, under FAILURES."]
    for name, tests in failed.items():
        lines += [f"  {name}:", *(f"    {test}" for test in tests or ["the part itself, see above"])]
    name, tests = next(((name, tests) for name, tests in failed.items() if tests), ("", []))
    if tests:
        beside = "-m tests.servers .venv/bin/python " if name == "jobs" else ""
        lines.append(f"To run one alone: .venv/bin/python {beside}-m pytest '{tests[0]}'")
    return "\n".join(lines)


def say(text: str) -> None:
    print(f"\n== {text}\n", flush=True)


def minutes_of(seconds: float) -> str:
    """24 min 5 s."""
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("Stopped.")
