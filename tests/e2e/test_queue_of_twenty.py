"""Twenty runs queued at once, on SQLite, with people looking at pages meanwhile; and stopping runs."""

from __future__ import annotations

import json
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import pytest

from tests.e2e.installation import OVER, Api, Installation, Person, send

pytestmark = pytest.mark.slow

RUNS = 20


class Visitor(threading.Thread):
    """Somebody signed in who opens one page after another, and remembers how long each took."""

    def __init__(self, url: str, cookies: str, paths: list[str]) -> None:
        super().__init__(daemon=True)
        self.url, self.cookies, self.paths = url, cookies, paths
        self.seconds: list[float] = []
        self.errors: list[str] = []
        self.enough = threading.Event()

    def run(self) -> None:
        for path in cycle(self.paths):
            if self.enough.wait(0.3):
                return
            began = time.monotonic()
            answer = send(urllib.request.Request(self.url + path, headers={"Cookie": self.cookies}))
            self.seconds.append(time.monotonic() - began)
            if answer.status != 200:
                self.errors.append(f"{path}: {answer.status}")


@contextmanager
def visiting(installation: Installation, person: Person, paths: list[str]) -> Iterator[Visitor]:
    stored = json.loads(person.session.read_text())["cookies"]
    visitor = Visitor(installation.url, "; ".join(f"{one['name']}={one['value']}" for one in stored), paths)
    visitor.start()
    try:
        yield visitor
    finally:
        visitor.enough.set()
        visitor.join(timeout=30)


def start(api: Api, dataset: int, name: str, **hyper: float) -> int:
    """A tiny run's id."""
    few = {"max_steps": 1, "max_length": 128, "per_device_train_batch_size": 2, **hyper}
    asked = {"name": name, "dataset": dataset, "target_module_config": "efficient", "hyperparameters": few}
    return int(api.post("/runs", asked)["id"])


def drop_evaluations(api: Api) -> None:
    """Stop the scoring that follows each run: it would keep the tests after this one waiting."""
    jobs = api.get("/jobs?limit=200")["data"]
    for job in jobs:
        if job["kind"] == "evaluate" and job["state"] not in OVER:
            api.call("POST", f"/jobs/{job['id']}/cancel")


def test_twenty_runs_end_in_order_with_twenty_adapters_while_pages_answer(
    installation: Installation, mara: Person, api: Api, dataset: int, measured: Callable[[str], None]
) -> None:
    began = time.monotonic()
    runs = [start(api, dataset, f"Queued {place}") for place in range(RUNS)]
    with visiting(installation, mara, ["/", "/runs/", f"/runs/{runs[-1]}/"]) as visitor:
        ended = [api.wait(f"/runs/{run}", seconds=180) for run in runs]
    assert visitor.errors == []
    p95 = statistics.quantiles(visitor.seconds, n=20)[-1]
    took = time.monotonic() - began
    measured(f"{RUNS} runs in {took:.0f} s; {len(visitor.seconds)} pages meanwhile, p95 {p95 * 1000:.0f} ms")
    assert [run["state"] for run in ended] == ["succeeded"] * RUNS
    assert len({run["adapter"]["id"] for run in ended}) == RUNS
    drop_evaluations(api)
    # Adapters are numbered as they are made.
    made = [run["adapter"]["id"] for run in ended]
    assert made == sorted(made)


def test_a_waiting_run_is_stopped_at_once(api: Api, dataset: int) -> None:
    ahead = start(api, dataset, "Ahead", max_steps=5000)
    waiting = start(api, dataset, "Behind")
    assert api.post(f"/runs/{waiting}/cancel")["state"] == "cancelled"
    assert api.call("POST", f"/runs/{waiting}/cancel").status == 409
    api.post(f"/runs/{ahead}/cancel")
    assert api.wait(f"/runs/{ahead}")["state"] == "cancelled"


def test_a_training_run_is_stopped_within_15_seconds(api: Api, dataset: int) -> None:
    run = start(api, dataset, "Long", max_steps=5000)
    api.wait(f"/runs/{run}", ("running",))
    while api.get(f"/runs/{run}")["step"] == 0:
        time.sleep(0.3)
    asked = api.call("POST", f"/runs/{run}/cancel")
    assert asked.status == 202
    found = api.wait(f"/runs/{run}", seconds=15)
    assert found["state"] == "cancelled"
    assert found["adapter"] is None
