"""Runs one engine process and measures what it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_engine(kind: str, folder: Path) -> tuple[dict[str, Any], float, int]:
    """Run an engine on `spec.json`; return its failure, processor seconds and peak memory in bytes."""
    command = [sys.executable, "-m", "workers.engine", kind, str(folder / "spec.json"), str(folder / "out")]
    with (folder / "events").open("wb") as events, (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=events, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    ended = [json.loads(line) for line in (folder / "events").read_bytes().splitlines()]
    assert ended[-1]["event"] == "Finished", (folder / "log").read_text()[-2000:]
    failure = next((event for event in ended if event["event"] == "Failure"), {})
    return failure, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
