"""`make bench`: this engine against HF Trainer with PEFT, interleaved, one process per training.

BENCH_REPEATS (5), BENCH_STEPS (all), BENCH_SHAPES (names by comma) and BENCH_DTYPES shorten a trial. Tokens
are counted from the data, without padding. Runs must end with the held-out loss of the peer as shipped, which
reads the same rows in the same order: within 0.01 in the mean over the repeats, one seed each. The first step
must have the gradients of PEFT's own forward, both computed in fp64, because fp32 alone rounds by up to 3e-5.
"Tuned" is the peer with rows grouped by length, the best of those that were tried. Eight arms are one call
of this engine, but eight runs of the peer.
TRL=PATH/TO/bin/python names a Python with TRL, PEFT and Transformers: its SFTTrainer is then compared too, as
shipped (with gradient checkpointing), and with rows grouped by length and without checkpointing.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.ratios import ratio
from tests.bench.shapes import ARMS, HELD_OUT, POOL, SHAPES, SINGLE, VARIED, Shape, Target

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".cache/bundled/SmolLM2-135M-Instruct"
TOLERANCE = 0.01  # nats
GRADIENT_TOLERANCE = 1e-5  # relative, in fp64
ARM_STEPS = 12
# Name -> what distinguishes it from the others.
CONTENDERS: dict[str, dict[str, Any]] = {
    "ours": {"kind": "ours", "shares_prefix": True},
    "ours, prompt not shared": {"kind": "ours", "shares_prefix": False},
    "peer, tuned": {"kind": "peer", "is_tuned": True},
    "peer, as shipped": {"kind": "peer", "is_tuned": False},
}
TRL = os.environ.get("TRL", "")
if TRL:
    CONTENDERS |= {
        "TRL, tuned": {"kind": "trl", "is_tuned": True},
        "TRL, as shipped": {"kind": "trl", "is_tuned": False},
    }
Results = dict[str, list[dict[str, Any]]]


def run(job: dict[str, Any], folder: Path) -> Any:
    """Return what one contender's process reports, and its time outside the steps: imports, loading."""
    path = folder / "job.json"
    path.write_text(json.dumps(job | {"model": str(MODEL)}))
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    python = TRL if job["kind"] == "trl" else sys.executable
    command = [python, "-m", "tests.bench.contender", str(path)]
    began, before = time.monotonic(), _children_seconds()
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job['kind']} failed: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if isinstance(found, dict):
        found["start_seconds"] = time.monotonic() - began - found.get("seconds", 0.0)
        found["start_cpu_seconds"] = _children_seconds() - before - found.get("cpu_seconds", 0.0)
    return found


def trl_versions() -> str:
    """Return the versions in TRL's environment. Raises CalledProcessError if a package is missing there."""
    read = "from importlib.metadata import version; print(*(f'{name} {version(name)}' for name in "
    command = [TRL, "-c", f"{read}('trl', 'transformers', 'peft', 'torch')), sep=', ')"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def job(rows: Path, steps: int, seed: int, dtype: str, out: Path, *targets: Target) -> dict[str, Any]:
    """Return what all contenders of a comparison are told."""
    pairs = [(target.modules, target.lowest) for target in targets]
    return {
        "rows": str(rows),
        "steps": int(os.environ.get("BENCH_STEPS", steps)),
        "seed": seed,
        "dtype": dtype,
        "out": str(out),
        "targets": pairs,
    }


def compare(shape: Shape, dtype: str, repeats: int, folder: Path) -> tuple[Results, dict[str, float]]:
    """Train every contender as often as asked for, forwards and backwards in turn; compare gradients."""
    rows = folder / "rows.json"
    rows.write_text(json.dumps(shape.rows(POOL + HELD_OUT)))
    names = [name for name in CONTENDERS if shape.shares_prompt or "not shared" not in name]
    results: Results = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else reversed(names):
            out = folder / f"{len(results[name])}-{names.index(name)}"
            common = job(rows, shape.steps, repeat, dtype, out, SINGLE)
            results[name].append(run(common | CONTENDERS[name], folder))
    check_tokens(results)
    first = results["peer, tuned"][0]
    gradients = run({"kind": "gradients", "samples": first["samples"], "dtype": dtype, "seed": 0}, folder)
    held_out = first["held_out"]
    adapters = [result["adapter"] for name in names for result in results[name]]
    losses = iter(run({"kind": "held out", "adapters": adapters, "samples": held_out}, folder))
    for name in names:
        for result in results[name]:
            result["loss"] = next(losses)
    return results, gradients


def compare_arms(targets: Sequence[Target], dtype: str, repeats: int, folder: Path) -> Results:
    """Train all targets in one call, and one after another with the tuned peer, in turn."""
    rows = folder / "rows.json"
    rows.write_text(json.dumps(VARIED.rows(POOL + HELD_OUT)))
    results: Results = {"ours": [], "peer, tuned": []}
    for repeat in range(repeats):
        for name in results if repeat % 2 == 0 else reversed(results):
            common = job(rows, ARM_STEPS, repeat, dtype, folder / f"{name}-{repeat}", *targets)
            results[name].append(run(common | CONTENDERS[name], folder))
    check_tokens(results)
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


def write(line: str) -> None:
    print(line, flush=True)


def write_ratio(label: str, unit: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
    middle, low, high = ratio(ours, theirs)
    write(f"  {label:30}{unit:>14} {middle:.2f} [{low:.2f}, {high:.2f}]")


def write_runs(results: Results) -> None:
    """Print one line for each contender."""
    write(f"  {'':30}{'tokens':>8}{'tok/CPU s':>11}{'tok/s':>8}{'peak GB':>9}{'held-out loss':>15}")
    for name, runs in results.items():
        medians = [statistics.median(speeds(runs, clock)) for clock in ("cpu_seconds", "seconds")]
        tokens, peak = (statistics.median(result[key] for result in runs) for key in ("tokens", "peak"))
        loss = f"{statistics.fmean(result['loss'] for result in runs):.4f}" if "loss" in runs[0] else ""
        write(f"  {name:30}{tokens:>8,.0f}{medians[0]:>11.1f}{medians[1]:>8.1f}{peak / 1e9:>9.2f}{loss:>15}")


def compared_pairs(results: Results) -> dict[str, tuple[str, str]]:
    """Return label -> the two contenders of a ratio."""
    peers = {
        "tuned": "peer, tuned",
        "shipped": "peer, as shipped",
        "TRL tuned": "TRL, tuned",
        "TRL as shipped": "TRL, as shipped",
    }
    peers = {label: name for label, name in peers.items() if name in results}
    plain = "ours, prompt not shared" if "ours, prompt not shared" in results else "ours"
    pairs = {f"engine against {label}": (plain, name) for label, name in peers.items()}
    if plain != "ours":
        pairs["sharing"] = ("ours", plain)
        pairs |= {f"both against {label}": ("ours", name) for label, name in peers.items()}
    return pairs


def loss_differences(results: Results, peer: str) -> tuple[float, str]:
    """Return the held-out losses less those of a peer: their mean, and a line of them."""
    both = zip(results["ours"], results[peer], strict=True)
    differences = [ours["loss"] - theirs["loss"] for ours, theirs in both]
    line = ", ".join(f"{one:+.4f}" for one in differences)
    return statistics.fmean(differences), f"  held-out loss less that of {peer}, by seed: {line}"


def report(shape: Shape, dtype: str, results: Results, gradients: dict[str, float]) -> bool:
    """Print one table; return whether losses and gradients agree."""
    write(f"\n{shape.name}, {dtype}")
    write_runs(results)
    for label, (one, other) in compared_pairs(results).items():
        for clock, unit in (("cpu_seconds", "tokens/CPU s"), ("seconds", "tokens/s")):
            write_ratio(label, unit, speeds(results[one], clock), speeds(results[other], clock))
        peaks = [[result["peak"] for result in results[name]] for name in (one, other)]
        write_ratio(label, "peak memory", *peaks)
    mean, line = loss_differences(results, "peer, as shipped")
    has_equal_loss = abs(mean) <= TOLERANCE
    write(f"{line}{'' if has_equal_loss else ' TOO FAR'}")
    if TRL:
        write(loss_differences(results, "TRL, as shipped")[1])
    is_exact = gradients["ours, fp64"] <= GRADIENT_TOLERANCE
    write(
        "  first step's gradients, relative distance from PEFT's own forward in fp64: ours in fp64 "
        f"{gradients['ours, fp64']:.1e}, ours {gradients['ours']:.1e}, the peer's {gradients['peer']:.1e}"
        f"{'' if is_exact else ' TOO FAR'}"
    )
    return has_equal_loss and is_exact


def report_arms(name: str, dtype: str, results: Results) -> None:
    """Print the table of eight arms: one call against eight processes of the tuned peer; less is better."""
    write(f"\n{name}, {dtype}")
    write_runs(results)
    ours, theirs = results["ours"], results["peer, tuned"]
    for clock, unit in (("cpu_seconds", "CPU time"), ("seconds", "time")):
        # Per token, because the contenders draw other rows.
        costs = [[run[clock] / run["tokens"] for run in runs] for runs in (ours, theirs)]
        write_ratio("steps alone", unit, *costs)
        starts = [[run[f"start_{clock}"] for run in runs] for runs in (ours, theirs)]
        costs = [
            [cost + count * start / run["tokens"] for cost, start, run in zip(*parts, strict=True)]
            for count, *parts in ((1, costs[0], starts[0], ours), (8, costs[1], starts[1], theirs))
        ]
        write_ratio("with eight starts to one", unit, *costs)
    write_ratio("of one peer", "peak memory", *([run["peak"] for run in runs] for runs in (ours, theirs)))


def main() -> None:
    repeats = int(os.environ.get("BENCH_REPEATS", "5"))
    dtypes = os.environ.get("BENCH_DTYPES", "float32,bfloat16").split(",")
    chosen = os.environ.get("BENCH_SHAPES", "").split(",")
    if not MODEL.is_dir():
        raise SystemExit("The bundled base model is missing. Run `make start` once.")
    load, threads = os.getloadavg()[0], os.environ["OMP_NUM_THREADS"]
    write(f"Load {load:.1f}, {repeats} repeats, OMP_NUM_THREADS {threads}.")
    if TRL:
        write(trl_versions())
    agrees = True
    for dtype in dtypes:
        for shape in SHAPES:
            if chosen == [""] or shape.name in chosen:
                with tempfile.TemporaryDirectory(prefix="graftworks-bench-") as name:
                    agrees &= report(shape, dtype, *compare(shape, dtype, repeats, Path(name)))
        for arms, targets in ARMS.items():
            if chosen == [""] or arms in chosen:
                with tempfile.TemporaryDirectory(prefix="graftworks-bench-") as name:
                    report_arms(arms, dtype, compare_arms(targets, dtype, repeats, Path(name)))
    raise SystemExit(0 if agrees else "Losses or gradients differ, so the speeds are no result.")


if __name__ == "__main__":
    main()
