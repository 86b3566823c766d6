"""The cost of an installation that nobody uses: `python -m tests.bench.idle`.

Starts one in a folder of its own, waits until its first job has ended, and adds up memory (PSS, in which
processes share what they have in common) and processor time over IDLE_SECONDS (120).
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

from tests.e2e.installation import run_installation, until

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".cache/bundled/SmolLM2-135M-Instruct"
FORK_SERVER = "workers.engine.fork_server"


def pss_megabytes(process: psutil.Process) -> float:
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    return int(re.findall(r"^Pss:\s+(\d+) kB", text, re.M)[0]) * 1024 / 1e6


def seconds_used(processes: list[psutil.Process]) -> dict[int, float]:
    return {process.pid: sum(process.cpu_times()[:2]) for process in processes}


def main() -> None:
    seconds = float(os.environ.get("IDLE_SECONDS", "120"))
    with tempfile.TemporaryDirectory(prefix="graftworks-idle-") as name, ExitStack() as stack:
        os.environ |= {"DJANGO_SETTINGS_MODULE": "dashboard.settings", "DATA_DIR": f"{name}/unused"}
        running = stack.enter_context(run_installation(Path(name), MODEL))
        until(lambda: "Inspect 1: succeeded" in running.log_tail(), "the inspection of the bundled model")
        launcher = psutil.Process(running.process.pid)
        processes = [launcher, *launcher.children(recursive=True)]
        before = seconds_used(processes)
        time.sleep(seconds)
        after = seconds_used(processes)
        preloaded, memory, share = 0.0, 0.0, 0.0
        for process in processes:
            used = 100 * (after[process.pid] - before[process.pid]) / seconds
            megabytes = pss_megabytes(process)
            is_preloaded = FORK_SERVER in process.cmdline()
            preloaded += megabytes if is_preloaded else 0
            memory += megabytes
            share += used
            label = "engine's libraries" if is_preloaded else process.name()
            print(f"{label:20}{megabytes:>7.0f} MB{used:>7.2f} %")
        print(f"{len(processes)} processes: {memory:.0f} MB (PSS), {share:.1f} % of one core")
        print(f"after ENGINE_PRELOAD_MINUTES without a job {memory - preloaded:.0f} MB (limits: 450 MB, 3 %)")


if __name__ == "__main__":
    main()
