"""From a claim to the first optimizer step: `python -m tests.bench.warm_start`.

Runs an installation with the bundled model and warms its worker with one run. Then its runs start in turn
with trainings of the tuned peer. The peer's start ends where it calls Trainer.train, this engine's where its
loop begins. The loop validates the untrained adapter before the first step, which counts as validation. Both
read few rows. BENCH_REPEATS (5).
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.bench.__main__ import CONTENDERS, job, run
from tests.bench.open_streams import installation_with_model
from tests.bench.ratios import ratio
from tests.bench.shapes import SINGLE, VARIED, Row
from tests.e2e.installation import OVER, Api, start_run, until

ROWS, GOAL = 200, 1 / 3


def upload(api: Api, rows: list[Row]) -> int:
    """Return the id of the dataset of these conversations."""
    lines = [json.dumps({"messages": row}) for row in rows]
    sent = api.upload("rows.jsonl", "\n".join(lines).encode(), name="Rows")
    return int(api.wait(f"/datasets/{sent.json()['id']}")["id"])


def moment(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


def is_idle(api: Api) -> bool:
    return all(job["state"] in OVER for job in api.get("/jobs?limit=50")["data"])


def our_seconds(api: Api, dataset: int, name: str) -> tuple[float, float]:
    """Return the seconds from claim to the begin of the loop, and to the adapter of a run of one step."""
    run_id = start_run(api, dataset, name, max_steps=1, per_device_train_batch_size=8)
    jobs = api.get("/jobs?limit=50")["data"]
    address = next(f"/jobs/{one['id']}" for one in jobs if (one["kind"], one["run"]) == ("train", run_id))
    deadline = time.monotonic() + 300
    while (found := api.get(address))["phase"] != "training":
        if time.monotonic() > deadline or found["state"] == "failed":
            raise SystemExit(f"The training did not begin: {found}")
        time.sleep(0.01)
    begun = time.time()
    ended = api.wait(address)
    # Its scores, which would be computed beside the next one.
    until(lambda: is_idle(api), "an idle queue", 300)
    return begun - moment(found["started_at"]), moment(ended["finished_at"]) - moment(found["started_at"])


def peer_seconds(folder: Path, repeat: int) -> float:
    """Return the seconds from the start of the peer's process to its call of Trainer.train."""
    told = job(folder / "rows.json", 1, repeat, "float32", folder / f"peer-{repeat}", SINGLE)
    began = time.monotonic()
    return float(run(told | CONTENDERS["peer, tuned"], folder)["begun"] - began)


def main() -> None:
    repeats = int(os.environ.get("BENCH_REPEATS", "5"))
    rows = VARIED.rows(ROWS)
    ours: list[tuple[float, float]] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory(prefix="graftworks-bench-") as name:
        (Path(name) / "rows.json").write_text(json.dumps(rows))
        with installation_with_model() as (installation, token):
            api = Api(installation.url, token)
            until(lambda: api.get("/base-models")["data"][0]["parameters"], "the bundled base model", 300)
            dataset = upload(api, rows)
            cold = our_seconds(api, dataset, "Cold")
            for repeat in range(repeats):
                ours.append(our_seconds(api, dataset, f"Warm {repeat}"))
                theirs.append(peer_seconds(Path(name), repeat))
    starts, wholes = zip(*ours, strict=True)
    middle, low, high = ratio(starts, theirs)
    print(f"claim to loop: {statistics.median(starts):.2f} s (the first run {cold[0]:.2f} s)")
    print(f"claim to the adapter of one step: {statistics.median(wholes):.2f} s")
    print(f"start of the tuned peer: {statistics.median(theirs):.2f} s")
    print(f"ratio of the starts {middle:.2f} [{low:.2f}, {high:.2f}] (goal: {GOAL:.2f})")


if __name__ == "__main__":
    main()
