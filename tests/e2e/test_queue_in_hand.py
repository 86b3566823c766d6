"""A manager pauses the worker, orders what waits by mouse and keyboard, and the worker then takes it so."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page

from tests.e2e.installation import Api, until

pytestmark = pytest.mark.slow


def waiting(page: Page) -> list[str]:
    """The names of the runs that may be moved, in the order on the page."""
    return page.locator("tr[data-job] .card-link-title").all_inner_texts()


def drag(page: Page, name: str, above: str) -> None:
    """With the mouse, by the grip at its row."""
    rows = page.locator("tr[data-job]")
    grip = rows.filter(has_text=name).locator(".queue-grip").bounding_box()
    target = rows.filter(has_text=above).bounding_box()
    assert grip
    assert target
    page.mouse.move(grip["x"] + 5, grip["y"] + 10)
    page.mouse.down()
    page.mouse.move(target["x"] + 80, target["y"] + 20, steps=4)
    page.mouse.move(target["x"] + 80, target["y"] + 5)
    page.mouse.up()


def test_what_waits_is_taken_in_the_order_that_a_manager_gives_it(page: Page, api: Api, dataset: int) -> None:
    page.set_viewport_size({"width": 1280, "height": 1600})
    page.goto("/queue/")
    page.get_by_role("button", name=re.compile("Pause gpu")).click()
    page.get_by_text("Takes no new job: paused by").wait_for()
    few = {"max_steps": 1, "max_length": 128, "per_device_train_batch_size": 2}
    asked = {"dataset": dataset, "target_module_config": "efficient", "hyperparameters": few}
    runs = {name: api.post("/runs", {"name": name, **asked})["id"] for name in ("Amber", "Birch", "Cedar")}
    page.goto("/queue/")
    assert waiting(page) == ["Amber", "Birch", "Cedar"]
    drag(page, "Cedar", above="Amber")
    until(lambda: waiting(page) == ["Cedar", "Amber", "Birch"], "the dropped row in its new place")
    page.get_by_role("button", name="Move Birch up").focus()
    page.keyboard.press("Enter")
    until(lambda: waiting(page) == ["Cedar", "Birch", "Amber"], "the row moved by keyboard")
    assert page.locator(":focus").get_attribute("value") == "up"
    page.goto("/queue/")
    page.get_by_role("button", name=re.compile("Resume gpu")).click()
    for run in runs.values():
        assert api.wait(f"/runs/{run}", seconds=180)["state"] == "succeeded"
    jobs = {job["run"]: job for job in api.get("/jobs?limit=200")["data"] if job["kind"] == "train"}
    began = sorted(runs, key=lambda name: jobs[runs[name]]["started_at"])
    assert began == ["Cedar", "Birch", "Amber"]
    for job in api.get("/jobs?limit=200")["data"]:
        if job["kind"] == "evaluate" and not job["finished_at"]:
            api.call("POST", f"/jobs/{job['id']}/cancel")
