"""A run's page while it trains: points arrive, and reload, second tab and a killed web lose none."""

from __future__ import annotations

import json
import urllib.request

import psutil
import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.e2e.audit import faults
from tests.e2e.installation import Api, Installation, Person, points_of, until

pytestmark = pytest.mark.slow


def read_stream(
    installation: Installation, person: Person, run: int, since: str, wanted: int
) -> list[dict[str, str]]:
    """The next events of the stream, each as its fields."""
    stored = json.loads(person.session.read_text())["cookies"]
    cookies = "; ".join(f"{one['name']}={one['value']}" for one in stored)
    request = urllib.request.Request(f"{installation.url}/runs/{run}/stream/", headers={"Cookie": cookies})
    if since:
        request.add_header("Last-Event-ID", since)
    events: list[dict[str, str]] = []
    with urllib.request.urlopen(request, timeout=120) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        block: dict[str, str] = {}
        while len(events) < wanted:
            line = stream.readline().decode().rstrip("\n")
            if line:
                name, _colon, value = line.partition(": ")
                block[name] = value
            elif block.get("event"):
                events.append(block)
            block = block if line else {}
    return events


def test_the_stream_brings_each_point_once(installation: Installation, mara: Person, long_run: int) -> None:
    first = read_stream(installation, mara, long_run, "", 4)
    later = read_stream(installation, mara, long_run, first[-1]["id"], 4)
    steps = [
        point[0]
        for event in (*first, *later)
        if event["event"] == "points"
        for point in json.loads(event["data"])["curves"].get("train/loss", [])
    ]
    assert len(steps) > 2
    assert steps == sorted(set(steps)), "a step came twice or out of order"


def test_points_arrive_without_a_reload(page: Page, long_run: int) -> None:
    page.goto(f"/runs/{long_run}/")
    page.evaluate("window.loadedOnce = true")
    until(lambda: points_of(page) > 0, "the first points")
    before = points_of(page)
    until(lambda: points_of(page) > before, "more points")
    assert page.evaluate("window.loadedOnce")
    expect(page.locator(".run-state")).to_contain_text("Training")


def test_a_reload_and_a_second_tab_show_the_whole_curve(
    context: BrowserContext, page: Page, long_run: int
) -> None:
    page.goto(f"/runs/{long_run}/")
    until(lambda: points_of(page) > 0, "the first points")
    before = points_of(page)
    page.reload()
    until(lambda: points_of(page) >= before, "the points from before the reload")
    second = context.new_page()
    second.goto(f"/runs/{long_run}/")
    until(lambda: points_of(second) >= before, "the same points in the second tab")
    growing = points_of(page)
    until(lambda: points_of(page) > growing, "more points in the first tab")


def test_a_killed_web_program_comes_back_and_so_does_the_page(
    installation: Installation, api: Api, page: Page, long_run: int
) -> None:
    page.goto(f"/runs/{long_run}/")
    until(lambda: points_of(page) > 0, "the first points")
    page.evaluate("window.loadedOnce = true")
    children = psutil.Process(installation.process.pid).children(recursive=True)
    for web in (child for child in children if child.name().startswith("gw-web")):
        web.kill()
    before = points_of(page)
    # Two numbers more than one batch that may have been on its way.
    until(lambda: points_of(page) > before + 1, "points after the restart")
    assert page.evaluate("window.loadedOnce"), "the page had to be loaded anew"
    assert api.get(f"/runs/{long_run}")["state"] == "running"


def test_a_run_that_ends_while_its_page_loads_is_shown_as_ended(page: Page, api: Api, long_run: int) -> None:
    def end_first(route: Route) -> None:
        api.call("POST", f"/runs/{long_run}/cancel", {"keep": "checkpoint"})
        api.wait(f"/runs/{long_run}")
        route.continue_()

    page.route("**/metrics/*", end_first, times=1)
    page.goto(f"/runs/{long_run}/")
    expect(page.locator("[data-state=cancelled]")).to_be_attached()
    page.get_by_role("button", name="Resume from step").click()
    until(lambda: api.get(f"/runs/{long_run}")["state"] == "running", "the resumed run")


def test_stopping_from_the_page_asks_first_and_shows_the_end_live(page: Page, long_run: int) -> None:
    page.goto(f"/runs/{long_run}/")
    page.get_by_role("link", name="Stop", exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Continue the run")).to_be_focused()
    assert faults(page, "stop-run") == []
    dialog.get_by_role("button", name="Continue the run").click()
    expect(dialog).to_be_hidden()
    page.get_by_role("link", name="Stop", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Keep the checkpoint").click()
    expect(page.locator("[data-state=cancelled]")).to_be_attached()
    expect(page.locator(".run-state")).to_contain_text("Stopped")
    expect(page.get_by_role("button", name="Resume from step")).to_be_visible()


def test_a_stopped_run_is_resumed_and_its_best_kept(page: Page, api: Api, long_run: int) -> None:
    before = api.get(f"/runs/{long_run}")["resumable_from"]
    page.goto(f"/runs/{long_run}/")
    page.get_by_role("button", name="Resume from step").click()
    until(lambda: api.get(f"/runs/{long_run}")["step"] > before, "a step after the checkpoint")
    page.get_by_role("link", name="Stop", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Keep the best adapter so far").click()
    expect(page.locator("[data-state=stopped_early]")).to_be_attached()
    expect(page.get_by_role("link", name="Download adapter")).to_be_visible()
