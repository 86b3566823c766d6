"""Pages of 20 viewers while the machine trains: `python -m tests.bench.beside_trainings`.

Runs an installation with the bundled model and as many fine-tunes as it trains at once. Measures the speed of
these without and with viewers in turns of BENCH_SECONDS (60), and the pages of the viewers, who open one each
ten seconds.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from contextlib import aclosing
from pathlib import Path

import httpx2

from tests.bench.open_streams import ADDRESSES, installation_with_model, sign_in, write
from tests.e2e.installation import Api, Installation, start_run, until

VIEWERS, PAGE_SECONDS, TURNS, GOAL_MS = 20, 10.0, 3, 200
SAMPLE = Path(__file__).parents[2] / "dashboard/samples/support_messages.jsonl"


def start_trainings(api: Api) -> None:
    """Start as many long fine-tunes as train at once, and wait until all do."""
    sent = api.upload("messages.jsonl", SAMPLE.read_bytes(), name="Messages")
    dataset = int(api.wait(f"/datasets/{sent.json()['id']}")["id"])
    workers = next(one for one in api.get("/workers")["data"] if one["queue"] == "gpu")
    runs = [
        start_run(api, dataset, f"Long {number}", max_steps=100_000, per_device_train_batch_size=8)
        for number in range(workers["processes"])
    ]
    until(lambda: len(steps(api)) == len(runs), "all trainings", 300)


def steps(api: Api) -> list[int]:
    """Return the steps of the trainings that are past their first ones."""
    jobs = api.get("/jobs?limit=50")["data"]
    return [job["step"] for job in jobs if job["kind"] == "train" and job["step"] > 3]


async def view(client: httpx2.AsyncClient, number: int, until_time: float) -> list[float]:
    """Open pages until then, and return the milliseconds of each."""
    chance, found = random.Random(number), []
    await asyncio.sleep(chance.random() * PAGE_SECONDS)
    while time.monotonic() < until_time:
        began = time.monotonic()
        answer = await client.get(chance.choice(ADDRESSES))
        found.append(1000 * (time.monotonic() - began))
        assert answer.status_code == 200, answer.url
        await asyncio.sleep(PAGE_SECONDS * (0.5 + chance.random()))
    return found


async def measure(installation: Installation, api: Api) -> None:
    seconds = float(os.environ.get("BENCH_SECONDS", "60"))
    found: list[float] = []
    speeds: dict[bool, list[float]] = {False: [], True: []}
    async with aclosing(await sign_in(installation.url)) as client:
        for address in ADDRESSES:
            await client.get(address)  # warms templates and caches
        for watched in [False, True] * TURNS:
            before, began = sum(await asyncio.to_thread(steps, api)), time.monotonic()
            if watched:
                viewers = (view(client, number, began + seconds) for number in range(VIEWERS))
                found += [spent for pages in await asyncio.gather(*viewers) for spent in pages]
            await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
            after = sum(await asyncio.to_thread(steps, api))
            speeds[watched].append((after - before) / (time.monotonic() - began))
    write(f"{len(found)} pages of {VIEWERS} viewers (goal: p95 {GOAL_MS} ms)", found)
    alone, beside = (statistics.median(speeds[watched]) for watched in (False, True))
    change = f"{beside / alone - 1:+.0%} (goal: at least -15 %)"
    print(f"steps per second: {alone:.2f} alone, {beside:.2f} beside viewers, {change}")


def main() -> None:
    with installation_with_model() as (installation, token):
        api = Api(installation.url, token)
        until(lambda: api.get("/base-models")["data"][0]["parameters"], "the bundled base model", 300)
        start_trainings(api)
        asyncio.run(measure(installation, api))


if __name__ == "__main__":
    main()
