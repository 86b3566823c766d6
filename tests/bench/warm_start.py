"""From a claim to the first optimizer step: `python -m tests.bench.warm_start`.

Runs an installation with the bundled model and warms its worker with one run. Then its runs start in turn
with trainings of the tuned peer, in the number format that this machine picks and on few rows. Two moments
are compared: the begin of the loop, which is Trainer.train for the peer, and the end of the first optimizer
step. This engine's moments are read from the API up to a second late. BENCH_REPEATS (5).
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.__main__ import CONTENDERS, job, run
from tests.bench.contender import BATCH
from tests.bench.open_streams import installation_with_model
from tests.bench.ratios import ratio
from tests.bench.shapes import SINGLE, VARIED, Row
from tests.e2e.installation import OVER, Api, start_run, until

ROWS, STEPS, GOAL = 200, 12, 1 / 3


def upload(api: Api, rows: list[Row]) -> int:
    """Return the id of the dataset of these conversations."""
    lines = [json.dumps({"messages": row}) for row in rows]
    sent = api.upload("rows.jsonl", "\n".join(lines).encode(), name="Rows")
    return int(api.wait(f"/datasets/{sent.json()['id']}")["id"])


def is_idle(api: Api) -> bool:
    return all(job["state"] in OVER for job in api.get("/jobs?limit=50")["data"])


def our_seconds(api: Api, dataset: int, name: str) -> tuple[float, float]:
    """Return the seconds from the claim to the begin of the loop, and to the end of the first step."""
    run_id = start_run(api, dataset, name, max_steps=STEPS, per_device_train_batch_size=BATCH)
    jobs = api.get("/jobs?limit=50")["data"]
    address = next(f"/jobs/{one['id']}" for one in jobs if (one["kind"], one["run"]) == ("train", run_id))
    begun = moment_when(api, address, lambda found: found["phase"] == "training")
    curve = f"/runs/{run_id}/metrics?name=train/loss"
    stepped = moment_when(api, address, lambda _found: bool(api.get(curve)["points"]))
    claimed = datetime.datetime.fromisoformat(api.wait(address)["started_at"]).timestamp()
    # Its scores, which would be computed beside the next one.
    until(lambda: is_idle(api), "an idle queue", 300)
    return begun - claimed, stepped - claimed


def moment_when(api: Api, address: str, holds: Callable[[dict[str, Any]], bool]) -> float:
    """Return the time when something holds for a job that has not ended."""
    while not holds(found := api.get(address)):
        if found["state"] in OVER:
            raise SystemExit(f"The training ended too early: {found}")
        time.sleep(0.01)
    return time.time()


def peer_seconds(folder: Path, dtype: str, repeat: int) -> tuple[float, float]:
    """Return the seconds from the start of the peer's process to its loop, and to its first step's end."""
    told = job(folder / "rows.json", 1, repeat, dtype, folder / f"peer-{repeat}", SINGLE)
    began = time.monotonic()
    measured = run(told | CONTENDERS["peer, tuned"], folder)
    return measured["begun"] - began, measured["stepped"] - began


def usual_format() -> str:
    """Return the number format that this machine picks."""
    import torch

    from workers.engine import runtime

    return runtime.dtype_name(runtime.pick_dtype("auto", torch.device("cpu")))


def main() -> None:
    repeats, dtype = int(os.environ.get("BENCH_REPEATS", "5")), usual_format()
    rows = VARIED.rows(ROWS)
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="graftworks-bench-") as name:
        (Path(name) / "rows.json").write_text(json.dumps(rows))
        with installation_with_model() as (installation, token):
            api = Api(installation.url, token)
            until(lambda: api.get("/base-models")["data"][0]["parameters"], "the bundled base model", 300)
            dataset = upload(api, rows)
            our_seconds(api, dataset, "Warm-up")
            for repeat in range(repeats):
                ours.append(our_seconds(api, dataset, f"Warm {repeat}"))
                theirs.append(peer_seconds(Path(name), dtype, repeat))
    print(f"{dtype}, {repeats} repeats; seconds, and those of the tuned peer")
    for place, label in enumerate(("begin of the loop", "end of the first step")):
        own, peer = [seconds[place] for seconds in ours], [seconds[place] for seconds in theirs]
        middle, low, high = ratio(own, peer)
        taken = f"{label}: {statistics.median(own):.2f} s of {statistics.median(peer):.2f} s"
        print(f"  {taken}, {middle:.2f} [{low:.2f}, {high:.2f}] (goal: {GOAL:.2f})")


if __name__ == "__main__":
    main()
