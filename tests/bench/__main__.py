"""`make bench`: this engine against HF Trainer with PEFT, interleaved, one process per training.

BENCH_REPEATS (5), BENCH_STEPS (all), BENCH_SHAPES (names by comma) and BENCH_DTYPES shorten a trial. Tokens
are counted from the data, without padding. A run must end with the held-out loss of the peer, within 0.01.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.shapes import POOL, SHAPES, Shape

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".cache/bundled/SmolLM2-135M-Instruct"
HELD_OUT = 64
TOLERANCE = 0.01  # nats
# Name -> what distinguishes it from the others.
CONTENDERS: dict[str, dict[str, Any]] = {
    "ours": {"kind": "ours", "shares_prefix": True},
    "ours, prompt not shared": {"kind": "ours", "shares_prefix": False},
    "peer, tuned": {"kind": "peer", "is_tuned": True},
    "peer, as shipped": {"kind": "peer", "is_tuned": False},
}
Results = dict[str, list[dict[str, Any]]]


def run(job: dict[str, Any], folder: Path) -> Any:
    """Return what one contender's process reports."""
    path = folder / "job.json"
    path.write_text(json.dumps(job | {"model": str(MODEL)}))
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.bench.contender", str(path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job['kind']} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(shape: Shape, dtype: str, repeats: int, folder: Path) -> Results:
    """Train every contender as often as asked for, forwards and backwards in turn."""
    rows = folder / "rows.json"
    drawn = shape.rows(POOL + HELD_OUT)
    rows.write_text(json.dumps(drawn[:POOL]))
    names = [name for name in CONTENDERS if shape.shares_prompt or "not shared" not in name]
    results: Results = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else reversed(names):
            out = folder / f"{len(results[name])}-{names.index(name)}"
            steps = int(os.environ.get("BENCH_STEPS", shape.steps))
            job = {"rows": str(rows), "steps": steps, "seed": repeat, "dtype": dtype, "out": str(out)}
            results[name].append(run(job | CONTENDERS[name], folder))
    check_tokens(results)
    rows.write_text(json.dumps([*drawn[POOL:], *drawn[:POOL]]))
    probe = {"rows": str(rows), "steps": 1, "seed": 0, "dtype": dtype, "out": str(folder / "probe")}
    held_out = run(probe | CONTENDERS["peer, as shipped"], folder)["samples"]
    adapters = [result["adapter"] for name in names for result in results[name]]
    losses = iter(run({"kind": "held out", "adapters": adapters, "samples": held_out}, folder))
    for name in names:
        for result in results[name]:
            result["loss"] = next(losses)
    return results


def check_tokens(results: Results) -> None:
    """Raise SystemExit unless all contenders read the same tokens and learn the same labels."""
    (first, *others) = (result["samples"] for runs in results.values() for result in runs)
    for other in others:
        for place, (mine, theirs) in enumerate(zip(first, other, strict=True)):
            if mine != theirs:
                raise SystemExit(f"Row {place} has other tokens or labels: {mine} and {theirs}.")


def speeds(runs: Sequence[dict[str, Any]], clock: str) -> list[float]:
    """Return tokens per second of each run."""
    return [run["tokens"] / run[clock] for run in runs]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return the ratio of the medians with its 95 % bootstrap interval."""
    generator = random.Random(0)

    def draw(values: Sequence[float]) -> float:
        return statistics.median(generator.choices(values, k=len(values)))

    drawn = sorted(draw(ours) / draw(theirs) for _ in range(2000))
    return statistics.median(ours) / statistics.median(theirs), drawn[49], drawn[1949]


def report(shape: Shape, dtype: str, results: Results, write: Callable[[str], None]) -> bool:
    """Print one table; return whether the losses agree."""
    write(f"\n{shape.name}, {dtype}")
    write(f"  {'':26}{'tok/CPU s':>10}{'tok/s':>8}{'peak GB':>9}{'held-out loss':>15}")
    for name, runs in results.items():
        medians = [statistics.median(speeds(runs, clock)) for clock in ("cpu_seconds", "seconds")]
        peak = statistics.median(result["peak"] for result in runs) / 1e9
        loss = statistics.fmean(result["loss"] for result in runs)
        write(f"  {name:26}{medians[0]:>10.1f}{medians[1]:>8.1f}{peak:>9.2f}{loss:>15.4f}")
    pairs = {
        "engine against tuned": ("ours", "peer, tuned"),
        "engine against shipped": ("ours", "peer, as shipped"),
    }
    if shape.shares_prompt:
        plain = "ours, prompt not shared"
        pairs = {
            "engine against tuned": (plain, "peer, tuned"),
            "engine against shipped": (plain, "peer, as shipped"),
            "sharing": ("ours", plain),
            "both against tuned": ("ours", "peer, tuned"),
        }
    for label, (one, other) in pairs.items():
        for clock in ("cpu_seconds", "seconds"):
            middle, low, high = ratio(speeds(results[one], clock), speeds(results[other], clock))
            unit = "CPU time" if clock == "cpu_seconds" else "wall time"
            write(f"  {label:26}{unit:>10} {middle:.2f} [{low:.2f}, {high:.2f}]")
    mean = {name: statistics.fmean(result["loss"] for result in runs) for name, runs in results.items()}
    agrees = mean["ours"] <= mean["peer, tuned"] + TOLERANCE
    write(f"  held-out loss within {TOLERANCE} of the tuned peer: {'yes' if agrees else 'NO'}")
    return agrees


def main() -> None:
    repeats = int(os.environ.get("BENCH_REPEATS", "5"))
    dtypes = os.environ.get("BENCH_DTYPES", "float32,bfloat16").split(",")
    chosen = os.environ.get("BENCH_SHAPES", "")
    if not MODEL.is_dir():
        raise SystemExit("The bundled base model is missing. Run `make start` once.")
    print(
        f"Load {os.getloadavg()[0]:.1f}, {repeats} repeats, OMP_NUM_THREADS {os.environ['OMP_NUM_THREADS']}."
    )
    agrees = True
    for dtype in dtypes:
        for shape in SHAPES:
            if chosen and shape.name not in chosen.split(","):
                continue
            with tempfile.TemporaryDirectory(prefix="graftworks-bench-") as name:
                results = compare(shape, dtype, repeats, Path(name))
                agrees &= report(shape, dtype, results, lambda line: print(line, flush=True))
    raise SystemExit(0 if agrees else "The held-out losses differ, so the speeds are no result.")


if __name__ == "__main__":
    main()
