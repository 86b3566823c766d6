"""From the study form to the verdict in a real browser: two arms, one seed, a few steps on the tiny model."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page

from tests.e2e.audit import faults
from tests.e2e.installation import Api

pytestmark = pytest.mark.slow


def test_a_study_goes_from_the_form_to_its_verdict(page: Page, api: Api, dataset: int) -> None:
    page.goto(f"/studies/new/?dataset={dataset}")
    for name in ("Balanced", "Query + value", "Attention", "MLP"):
        page.get_by_role("checkbox", name=re.compile(rf"^{re.escape(name)}\b")).uncheck()
    page.get_by_label("Name").fill("Where to put it")
    page.get_by_label("Seeds per arm").fill("1")
    page.get_by_text("Own length and learning rate").click()
    page.locator("#id_max_steps").fill("4")
    page.locator("details.expert summary").click()
    page.get_by_label("Maximum sequence length").fill("128")
    plan = page.locator("#plan")
    plan.get_by_text("2 arms × 1 seed").wait_for()
    plan.get_by_text("Indicative only").wait_for()
    # Pressed as slowly as people do: leaving the field before renews the plan around the button meanwhile.
    page.locator("#id_margin").fill("4")
    plan.get_by_role("button", name="Start study").click(delay=700)
    page.wait_for_url(re.compile(r"/studies/\d+/$"))
    pk = page.url.rstrip("/").rpartition("/")[2]
    page.locator("#study-grid").get_by_text("0 of 2 runs done").wait_for()
    ended = api.wait(f"/studies/{pk}")
    assert ended["state"] == "succeeded", ended
    # The page finds the end by itself.
    page.get_by_text("Indicative only, with 1 seed").wait_for()
    page.locator("#study-grid").get_by_text("2 of 2 runs scored").wait_for()
    page.get_by_role("button", name="Add 2 seeds").wait_for()
    assert len(ended["comparisons"]) == 1

    page.get_by_role("button", name="Create link").click()
    link = page.locator("#share-address").inner_text()
    stranger = page.context.browser.new_page()  # type: ignore[union-attr]
    stranger.goto(link)
    assert stranger.get_by_text("Indicative only, with 1 seed").first.is_visible()
    assert faults(stranger, "share-link-open") == []
    stranger.close()
