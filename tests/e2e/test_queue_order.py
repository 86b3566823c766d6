"""Runs in the queue: a manager sets their order, they end in it, and pages answer meanwhile."""

from __future__ import annotations

import json
import re
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import pytest
from playwright.sync_api import Page

from tests.e2e.installation import OVER, Api, Installation, Person, send, start_run, until

pytestmark = pytest.mark.slow
NAMES = ["Amber", "Birch", "Cedar", "Dill", "Elm"]


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
        visitor.join(timeout=120)


def waiting(page: Page) -> list[str]:
    """The names of the waiting trainings, in the order on the page."""
    return page.locator("section[aria-labelledby=waiting-gpu] .card-link-title").all_inner_texts()


def drop_evaluations(api: Api) -> None:
    """Stop the scoring that follows each run: it would keep the tests after this one waiting."""
    for job in api.get("/jobs?limit=200")["data"]:
        if job["kind"] == "evaluate" and job["state"] not in OVER:
            api.call("POST", f"/jobs/{job['id']}/cancel")


def test_runs_start_in_the_order_of_the_queue_while_pages_answer(
    page: Page,
    installation: Installation,
    mara: Person,
    api: Api,
    dataset: int,
    measured: Callable[[str], None],
) -> None:
    page.goto("/queue/")
    page.get_by_role("button", name=re.compile("Pause gpu")).click()
    page.get_by_role("button", name=re.compile("Resume gpu")).wait_for()
    few = {"max_steps": 1, "per_device_train_batch_size": 2}
    runs = {name: start_run(api, dataset, name, **few) for name in NAMES}
    page.goto("/queue/")
    assert waiting(page) == NAMES
    page.get_by_label("Priority of Cedar").select_option("High")
    until(lambda: waiting(page) == ["Cedar", "Amber", "Birch", "Dill", "Elm"], "Cedar at the front")
    dropped = runs.pop("Elm")
    assert api.post(f"/runs/{dropped}/cancel")["state"] == "cancelled"
    assert api.call("POST", f"/runs/{dropped}/cancel").status == 409

    page.goto("/queue/")
    page.get_by_role("button", name=re.compile("Resume gpu")).click()
    with visiting(installation, mara, ["/", "/runs/", f"/runs/{runs['Dill']}/"]) as visitor:
        ended = {name: api.wait(f"/runs/{run}") for name, run in runs.items()}
    drop_evaluations(api)
    assert visitor.errors == []
    assert {run["state"] for run in ended.values()} == {"succeeded"}
    # Two train at once, so only their starts are in order.
    jobs = api.get("/jobs?limit=200")["data"]
    started = {job["run"]: job["started_at"] for job in jobs if job["kind"] == "train"}
    assert sorted(runs, key=lambda name: started[runs[name]]) == ["Cedar", "Amber", "Birch", "Dill"]
    p95 = statistics.quantiles(visitor.seconds, n=20)[-1]
    measured(f"{len(visitor.seconds)} pages while runs ended, p95 {p95 * 1000:.0f} ms")


def test_a_hidden_tab_asks_nothing_until_somebody_looks(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.install()
    page.goto("/")
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    page.wait_for_load_state("networkidle")
    asked.clear()
    page.clock.run_for(11_000)
    assert asked == []
    page.evaluate("delete document.hidden")
    page.clock.run_for(6_000)
    assert [url.endswith("/running/") for url in asked] == [True]
