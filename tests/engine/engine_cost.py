"""Runs one engine process and measures what it takes beyond loading its libraries: `run_engine`.

Loading torch and Transformers takes 3 to 8 s of a processor and 250 to 700 MB, by their build and machine.
Run as a program, it is the engine process: the peak memory that a parent sees of a child includes the
parent's own at the fork.
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
    """Run an engine on `spec.json`; return its failure, processor seconds and growth of memory in bytes."""
    arguments = [kind, str(folder / "spec.json"), str(folder / "out")]
    command = [sys.executable, "-m", "tests.engine.engine_cost", str(folder / "cost.json"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "Finished", done.stderr[-2000:]
    failure: dict[str, Any] = next((event for event in events if event["event"] == "Failure"), {})
    cost = json.loads((folder / "cost.json").read_text())
    return failure, cost["seconds"], cost["growth"]


def load_libraries() -> int:
    """Import what engines import and return this program's memory in bytes."""
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    import transformers.models.llama.modeling_llama  # noqa: F401

    import workers.engine.base_models.inspect_model
    import workers.engine.importing.run_import  # noqa: F401

    return peak_memory()


def peak_memory() -> int:
    """Return this program's peak in bytes; `ru_maxrss` starts with that of the process it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def processor_seconds() -> float:
    """Return the processor time of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main(arguments: list[str]) -> int:
    """Run the engine in this process, write its cost and return its exit status."""
    from workers.engine import __main__ as engine

    loaded, began = load_libraries(), processor_seconds()
    status = engine.main(arguments[1:])
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    cost = {"seconds": processor_seconds() - began, "growth": max(peak_memory(), children) - loaded}
    Path(arguments[0]).write_text(json.dumps(cost))
    return status


if __name__ == "__main__":
    exit_status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(exit_status)
