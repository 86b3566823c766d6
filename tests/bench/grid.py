"""The full grid of a study with the peer: `python -m tests.bench.grid STUDY.json FILE.jsonl ADAPTER MINUTES`.

STUDY.json: the study as its page exports it; FILE: its dataset; ADAPTER: the folder of an adapter that it
trained; MINUTES: from the click to the verdict. The tuned peer trains each arm's modules, and answers test
rows with that adapter by Transformers' `generate`, rows of like length together. From its processor seconds
follow those of all runs: start, steps, and answers to all test rows, these once more for the base model.
Two cores are taken to halve them. In the peer's favour, its rank is 8, and its validations, the losses of
test rows and the base model's longer answers are left out.
BENCH_REPEATS (3) and BENCH_STEPS (12).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.bench.__main__ import ARM_STEPS, CONTENDERS, job, run, write
from tests.bench.contender import BATCH
from tests.bench.shapes import HELD_OUT, POOL, Target

Study = dict[str, Any]
CORES = 2
ANSWERED = 200  # test rows


def answer_seconds(study: Study, rows: list[Any], adapter: str, repeats: int, folder: Path) -> float:
    """Return the peer's processor seconds to answer one row."""
    path = folder / "tested.json"
    path.write_text(json.dumps(rows))
    told = {"kind": "answers", "dtype": number_format(study), "rows": str(path), "adapter": adapter}
    measured = [run(told, folder) for _ in range(repeats)]
    return statistics.median(one["cpu_seconds"] for one in measured) / len(rows)


def training_seconds(study: Study, setting: Study, rows: Path, repeats: int) -> float:
    """Return the peer's processor seconds for one run of an arm: its start, and all steps."""
    target = Target(tuple(setting["spec"]["target"]["target_modules"]))
    measured = []
    for repeat in range(repeats):
        told = job(rows, ARM_STEPS, repeat, number_format(study), rows.parent / setting["arm"], target)
        measured.append(run(told | CONTENDERS["peer, tuned"], rows.parent))
    token = statistics.median(one["cpu_seconds"] / one["tokens"] for one in measured)
    # The steps of the trial are spread over the lengths, but they are few.
    row_tokens = statistics.fmean(len(ids) for ids, _ in measured[0]["samples"] + measured[0]["held_out"])
    start = statistics.median(one["start_cpu_seconds"] for one in measured)
    step = token * BATCH * row_tokens
    steps = setting["spec"]["hyperparameters"]["max_steps"]
    write(f"{setting['arm']:16} start {start:.1f} s, {steps} steps of {step:.2f} s")
    return float(start + steps * step)


def number_format(study: Study) -> str:
    """Return the format in which this machine computes the study's base model."""
    import torch

    from workers.engine import runtime

    dtype = study["settings"][0]["spec"]["dtype"]
    return runtime.dtype_name(runtime.pick_dtype(dtype, torch.device("cpu")))


def main() -> None:
    study_file, upload, adapter, minutes = sys.argv[1:]
    study: Study = json.loads(Path(study_file).read_text())
    rows = [json.loads(line)["messages"] for line in Path(upload).read_text().splitlines()]
    items = {score["item"] for score in study["scores"]}
    runs = Counter(setting["arm"] for setting in study["settings"])
    repeats = int(os.environ.get("BENCH_REPEATS", "3"))
    with tempfile.TemporaryDirectory(prefix="graftworks-bench-") as name:
        folder = Path(name)
        path = folder / "rows.json"
        path.write_text(json.dumps(rows[: POOL + HELD_OUT]))
        answer = answer_seconds(study, rows[-ANSWERED:], adapter, repeats, folder)
        write(f"{number_format(study)}; {len(items)} test rows, an answer {answer:.3f} s")
        arms = {setting["arm"]: setting for setting in study["settings"]}
        total = sum(
            runs[arm] * training_seconds(study, setting, path, repeats) for arm, setting in arms.items()
        )
    total += (runs.total() + 1) * len(items) * answer
    grid = total / CORES / 60
    write(f"{runs.total()} runs: {grid:.0f} min on {CORES} cores; the study {minutes} min")
    write(f"ratio {float(minutes) / grid:.2f}")


if __name__ == "__main__":
    main()
