"""A manager pauses the worker and gives a waiting run high priority; the worker then takes it first."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page

from tests.e2e.installation import Api, until

pytestmark = pytest.mark.slow


def waiting(page: Page) -> list[str]:
    """The names of the waiting trainings, in the order on the page."""
    return page.locator("section[aria-labelledby=waiting-gpu] .card-link-title").all_inner_texts()


def test_high_priority_is_taken_first(page: Page, api: Api, dataset: int) -> None:
    page.goto("/queue/")
    page.get_by_role("button", name=re.compile("Pause gpu")).click()
    page.get_by_role("button", name=re.compile("Resume gpu")).wait_for()
    few = {"max_steps": 1, "max_length": 128, "per_device_train_batch_size": 2}
    values = {"dataset": dataset, "target_module_config": "efficient", "hyperparameters": few}
    runs = {name: api.post("/runs", {"name": name, **values})["id"] for name in ("Amber", "Birch", "Cedar")}
    page.goto("/queue/")
    assert waiting(page) == ["Amber", "Birch", "Cedar"]
    page.get_by_label("Priority of Cedar").select_option("High")
    until(lambda: waiting(page) == ["Cedar", "Amber", "Birch"], "the run of high priority at the front")
    page.goto("/queue/")
    page.get_by_role("button", name=re.compile("Resume gpu")).click()
    for run in runs.values():
        assert api.wait(f"/runs/{run}", seconds=180)["state"] == "succeeded"
    jobs = {job["run"]: job for job in api.get("/jobs?limit=200")["data"] if job["kind"] == "train"}
    assert sorted(runs, key=lambda name: jobs[runs[name]]["started_at"]) == ["Cedar", "Amber", "Birch"]
    for job in api.get("/jobs?limit=200")["data"]:
        if job["kind"] == "evaluate" and not job["finished_at"]:
            api.call("POST", f"/jobs/{job['id']}/cancel")
