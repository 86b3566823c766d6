"""Runs one engine process and measures what it takes: `run_engine`.

Run as a program, it is that process: the peak memory that a parent sees of a child includes the parent's own
at the fork.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_engine(kind: str, folder: Path) -> tuple[dict[str, Any], float, int]:
    """Run an engine on `spec.json`; return its failure, processor seconds and peak memory in bytes."""
    arguments = [kind, str(folder / "spec.json"), str(folder / "out")]
    command = [sys.executable, "-m", "tests.engine.engine_cost", str(folder / "cost.json"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "Finished", done.stderr[-2000:]
    failure = next((event for event in events if event["event"] == "Failure"), {})
    cost = json.loads((folder / "cost.json").read_text())
    return failure, cost["seconds"], cost["peak"]


def measure(path: Path, arguments: list[str]) -> int:
    """Run the engine in this process, write its cost and return its exit status."""
    from workers.engine.__main__ import main

    status = main(arguments)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    path.write_text(json.dumps({"seconds": seconds, "peak": max(peak_memory(), children.ru_maxrss * 1024)}))
    return status


def peak_memory() -> int:
    """Return this program's peak in bytes; `ru_maxrss` starts with that of the process it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    exit_status = measure(Path(sys.argv[1]), sys.argv[2:])
    sys.stdout.flush()
    os._exit(exit_status)
