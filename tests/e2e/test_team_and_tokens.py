"""Access of people and programs: invitations, members and tokens, by the forms of their pages."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import PASSWORD
from tests.e2e.installation import Api, Installation

pytestmark = pytest.mark.slow


def test_a_token_made_on_the_page_works_until_it_is_revoked_there(
    page: Page, installation: Installation
) -> None:
    page.goto("/settings/tokens/")
    page.get_by_label("Name", exact=True).fill("nightly")
    page.get_by_role("button", name="Create token").click()
    secret = page.locator("#new-token").inner_text()
    assert secret.startswith("gw_")
    api = Api(installation.url, secret)
    assert api.call("GET", "/runs").status == 200
    assert api.call("POST", "/datasets/sample").status == 403
    page.goto("/settings/tokens/")
    assert secret not in page.content()
    page.get_by_role("button", name="Revoke nightly").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(page.locator(".notice")).to_contain_text("no longer works")
    assert api.call("GET", "/runs").status == 401


def test_an_invited_person_joins_once_and_can_be_removed(
    page: Page, browser: Browser, installation: Installation
) -> None:
    page.goto("/team/")
    page.get_by_label("Email address").fill("nils@example.org")
    page.get_by_role("button", name="Send invitation").click()
    link = page.locator("#invitation-link").inner_text()
    guest = browser.new_page(base_url=installation.url)
    guest.goto(link)
    guest.get_by_label("Your name").fill("Nils")
    guest.get_by_label("Password", exact=True).fill(PASSWORD)
    guest.get_by_role("button", name="Create account and join").click()
    expect(guest.get_by_role("heading", name="Home", exact=True)).to_be_visible()
    assert browser.new_page().goto(link).status == 404  # type: ignore[union-attr]
    page.goto("/team/")
    page.get_by_role("button", name=re.compile("^Remove Nils")).click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(page.get_by_role("region", name="Members")).not_to_contain_text("nils@example.org")
    answer = guest.goto("/runs/")
    assert answer is not None
    assert answer.status == 403
    guest.close()
