"""Measures a training from the start of its engine to its first optimizer step, executed and forked, in turn.

    python -m tests.proof.engine_start .cache/bundled/SmolLM2-135M-Instruct ROUNDS

Beside them HF Trainer with PEFT on the same rows, as a whole process with one step. Also prints the memory of
the idle fork server and the peaks that the engines report.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import django
import psutil

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dashboard.settings")
django.setup()

from django.conf import settings  # noqa: E402

from dashboard.models import Job  # noqa: E402
from dashboard.models.catalog.dataset import SAMPLE_FILE  # noqa: E402
from tests.bench.contender import BATCH, MAX_LENGTH  # noqa: E402
from tests.bench.shapes import RANK, SINGLE  # noqa: E402
from tests.tiny_model import write_canonical  # noqa: E402
from workers.contract.events import ArmEnd, Progress, from_line  # noqa: E402
from workers.contract.hyperparameters import Hyperparameters  # noqa: E402
from workers.contract.specs import BaseSpec, TargetSpec, TrainSpec, to_dict  # noqa: E402
from workers.supervision.engine_process import environment  # noqa: E402
from workers.supervision.forked_engine import ForkingPopen, server  # noqa: E402


def processor_seconds(process: psutil.Process) -> float:
    """Return the processor time of a process and its ended children."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def start_engine(
    popen: type[subprocess.Popen[Any]], spec: TrainSpec, folder: Path
) -> tuple[float, float, float]:
    """Train one step; return wall and processor seconds to its end, and the peak memory in bytes."""
    (folder / "spec.json").write_text(json.dumps(to_dict(spec)))
    command = [
        sys.executable,
        "-m",
        "workers.engine",
        "train",
        str(folder / "spec.json"),
        str(folder / "out"),
    ]
    variables = environment(Job.Kind.TRAIN, folder)
    began, wall, processor, peak = time.monotonic(), 0.0, 0.0, 0.0
    with (
        (folder / "log").open("wb") as log,
        popen(command, stdout=subprocess.PIPE, stderr=log, cwd=settings.BASE_DIR, env=variables) as engine,
    ):
        for line in engine.stdout or ():
            event = from_line(line)
            if isinstance(event, Progress) and event.phase == "training" and event.step == 1 and not wall:
                wall = time.monotonic() - began
                processor = processor_seconds(psutil.Process(engine.pid))
            elif isinstance(event, ArmEnd):
                peak = float(event.summary["peak_memory_bytes"])
    assert wall, (folder / "log").read_text()
    return wall, processor, peak


def start_peer(model: str, rows: Path, folder: Path) -> tuple[float, float, float]:
    """Run the peer for one step; return wall and processor seconds, and its peak memory in bytes."""
    job = {"kind": "peer", "is_tuned": True, "model": model, "rows": str(rows), "steps": 1, "seed": 0}
    job |= {"dtype": "float32", "out": str(folder / "out"), "targets": [(SINGLE.modules, SINGLE.lowest)]}
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "tests.bench.contender", str(folder / "job.json")]
    variables = environment(Job.Kind.TRAIN, folder) | {"PYTHONPATH": str(settings.BASE_DIR)}
    began, before = time.monotonic(), psutil.Process().cpu_times()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=settings.BASE_DIR, env=variables)
    wall, after = time.monotonic() - began, psutil.Process().cpu_times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, used, float(json.loads(done.stdout.splitlines()[-1])["peak"])


def main(model: str, rounds: int) -> None:
    forking = server(environment(Job.Kind.TRAIN, Path()))
    assert forking, "ENGINE_PRELOAD_MINUTES is 0"
    forking.await_ready()
    memory = psutil.Process(forking.process.pid).memory_full_info()
    print(f"Idle fork server: {memory.pss / 1e6:.0f} MB (PSS), {memory.rss / 1e6:.0f} MB (RSS)")
    rows = [json.loads(line)["messages"] for line in SAMPLE_FILE.read_text().splitlines()][:64]
    figures: dict[str, list[tuple[float, float, float]]] = {"forked": [], "executed": [], "peer": []}
    for _round in range(rounds):
        for name, measured in figures.items():
            with tempfile.TemporaryDirectory() as path:
                folder = Path(path)
                measured.append(measure(name, model, rows, folder))
    for name, measured in figures.items():
        wall, used, peak = (statistics.median(each) for each in zip(*measured, strict=True))
        print(f"{name:9}{wall:6.1f} s wall{used:6.1f} s processor{peak / 1e6:7.0f} MB peak", flush=True)


def measure(name: str, model: str, rows: Sequence[Any], folder: Path) -> tuple[float, float, float]:
    """Measure one start in a fresh folder."""
    if name == "peer":
        (folder / "rows.json").write_text(json.dumps(rows))
        return start_peer(model, folder / "rows.json", folder)
    spec = TrainSpec(
        name="start",
        base=BaseSpec(path=model, name="bundled"),
        data=write_canonical(folder / "data", rows, validation=[], test=[]),
        target=TargetSpec(
            target_modules=SINGLE.modules,
            modules=len(SINGLE.layers),
            trainable_parameters=SINGLE.trainable_parameters,
        ),
        hyperparameters=Hyperparameters(
            r=RANK, max_steps=1, per_device_train_batch_size=BATCH, max_length=MAX_LENGTH
        ),
        validation_rows=0,
        dtype="float32",
    )
    return start_engine(ForkingPopen if name == "forked" else subprocess.Popen, spec, folder)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
