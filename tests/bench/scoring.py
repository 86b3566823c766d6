"""Scoring of eight adapters on 200 rows: this engine against that of an earlier commit, in turn.

    BEFORE=WORKING_TREE python -m tests.bench.scoring [FILE.jsonl]

WORKING_TREE is a checkout of that commit; its engine runs with the same packages. The adapters are trained
first. "Base kept" is this engine where the base model's scores on these rows are known already, as after the
first evaluation of a dataset. BENCH_REPEATS (5) and BENCH_DTYPES (float32) as for the training. In float32
all answers must be equal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.ratios import ratio
from tests.bench.serving import MODEL, ROOT
from tests.bench.shapes import ARMS, RANK
from tests.tiny_model import write_canonical
from workers.contract.base_scores import number_format
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import BaseSpec, DataSpec, EvalSpec, TargetSpec, TrainSpec, to_dict

SAMPLE = ROOT / "dashboard/samples/support_messages.jsonl"
ROWS, STEPS = 200, 40
ARM_NAMES = [f"arm{number}" for number in range(8)]
Answers = dict[tuple[str, int], dict[str, Any]]


def engine(root: Path, kind: str, spec: Any, out: Path) -> tuple[float, float]:
    """Run one job of the engine in `root`; return its processor seconds and its peak memory in bytes."""
    out.mkdir(parents=True)
    (out / "spec.json").write_text(json.dumps(spec))
    with (out / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "workers.engine", kind, str(out / "spec.json"), str(out)],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""},
            stdout=log,
            stderr=log,
        )
        _pid, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{kind} in {root} failed:\n{(out / 'log').read_text()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def train(data: DataSpec, out: Path) -> dict[str, str]:
    """Train the arms; return the folder of each adapter."""
    learn = Hyperparameters(learning_rate=1.3e-3, max_steps=STEPS)
    specs = [
        TrainSpec(
            name=name,
            base=BaseSpec(path=str(MODEL), name="bundled"),
            data=data,
            target=TargetSpec(
                target_modules=target.modules,
                layers_to_transform=tuple(target.layers),
                modules=len(target.modules) * len(target.layers),
                trainable_parameters=target.trainable_parameters * learn.r // RANK,
            ),
            hyperparameters=learn,
        )
        for name, target in zip(ARM_NAMES, ARMS["eight arms on all layers"], strict=True)
    ]
    engine(ROOT, "train", {"specs": [to_dict(spec) for spec in specs]}, out)
    return {name: str(out / f"arm-{number}/adapter") for number, name in enumerate(ARM_NAMES)}


def answers(out: Path) -> Answers:
    """Return what the job wrote for each subject and row."""
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    return {(item["subject"], item["row"]): item for item in items}


def difference(ours: Answers, theirs: Answers) -> tuple[int, float]:
    """Return how many answers are equal, and the largest relative difference of a loss."""
    assert ours.keys() == theirs.keys()
    pairs = [(ours[key], theirs[key]) for key in ours]
    losses = [(one["scores"]["loss"], other["scores"]["loss"]) for one, other in pairs]
    return sum(one["output"] == other["output"] for one, other in pairs), max(
        abs(one - other) / other for one, other in losses
    )


def write_ratio(label: str, ones: Sequence[float], others: Sequence[float]) -> None:
    middle, low, high = ratio(ones, others)
    print(f"  {label:40} {middle:.2f} [{low:.2f}, {high:.2f}]")


def main() -> None:
    before = Path(os.environ["BEFORE"]).resolve()
    rows = [
        json.loads(line)["messages"]
        for line in Path(sys.argv[1] if len(sys.argv) > 1 else SAMPLE).read_text().splitlines()
    ]
    agrees = True
    with tempfile.TemporaryDirectory(prefix="graftworks-bench-") as name:
        folder = Path(name)
        test, others = rows[:ROWS], rows[ROWS : ROWS + 1600]
        data = write_canonical(folder / "data", others, test=test)
        adapters = train(data, folder / "adapters")
        for dtype in os.environ.get("BENCH_DTYPES", "float32").split(","):
            spec = EvalSpec(
                base=BaseSpec(path=str(MODEL), name="bundled"), data=data, adapters=adapters, dtype=dtype
            )
            fields = to_dict(spec)
            kept = {"kept_formats": [number_format(dtype, "cpu")]}
            fields.pop("kept_formats")  # unknown to earlier engines
            specs = {"ours": fields, "ours, base kept": fields | kept, "before": fields}
            results: dict[str, list[tuple[float, float]]] = {contender: [] for contender in specs}
            for repeat in range(int(os.environ.get("BENCH_REPEATS", "5"))):
                for contender in results if repeat % 2 == 0 else reversed(results):
                    out = folder / f"{dtype}-{contender}-{repeat}"
                    root = before if contender == "before" else ROOT
                    results[contender].append(engine(root, "evaluate", specs[contender], out))
            print(f"\n{len(test)} rows, base and {len(adapters)} adapters, {dtype}")
            for contender, runs in results.items():
                print(f"  {contender:16}" + "".join(f"{seconds:8.1f} s" for seconds, _peak in runs))
            times, peaks = (
                {contender: [run[place] for run in runs] for contender, runs in results.items()}
                for place in (0, 1)
            )
            for contender in ("ours", "ours, base kept"):
                write_ratio(f"CPU time before by {contender}", times["before"], times[contender])
            write_ratio("peak memory, ours by before", peaks["ours"], peaks["before"])
            first = [answers(folder / f"{dtype}-{contender}-0") for contender in ("ours", "before")]
            equal, loss = difference(*first)
            print(f"  {equal} of {len(first[0])} answers equal, losses within {loss:.1e}")
            agrees &= dtype != "float32" or equal == len(first[0])
    raise SystemExit(0 if agrees else "Answers differ, so the speeds are no result.")


if __name__ == "__main__":
    main()
