"""A run's page whose line is lost: it says so as long as that lasts, then catches up without a reload."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.e2e.installation import LAST_STEP, Installation, Person, points_of, sign_in, until
from tests.proxy import Proxy

pytestmark = pytest.mark.slow
GONE = (
    "The server does not respond. Running jobs continue, and this page updates when the connection is back."
)
EXPIRED = "Your session has ended. Sign in again."
# A notice about something that was pressed goes by itself.
LONGER_THAN_A_NOTICE = 9_000
# The limit of a request follows the page's clock, which tests put forward.
LIMIT = """AbortSignal.timeout = (milliseconds) => {
  const limit = new AbortController();
  setTimeout(() => limit.abort(), milliseconds);
  return limit.signal;
}"""


@pytest.fixture
def proxy(installation: Installation) -> Iterator[Proxy]:
    """The proxy between browser and server."""
    with Proxy(installation.url.removeprefix("http://")) as proxy:
        yield proxy


@pytest.fixture
def remote(browser: Browser, mara: Person, proxy: Proxy) -> Iterator[Page]:
    """A tab of Mara's behind the proxy."""
    window = browser.new_context(base_url=f"http://127.0.0.1:{proxy.port}", storage_state=mara.session)
    window.set_default_timeout(60_000)
    yield window.new_page()
    window.close()


def watch(page: Page, run: int) -> None:
    """Open the run's page and wait for its curve."""
    page.add_init_script(LIMIT)
    page.clock.install()
    page.goto(f"/runs/{run}/")
    until(lambda: points_of(page) > 0, "the first points")
    page.evaluate("window.loadedOnce = true")
    expect(notice(page)).to_have_count(0)


def notice(page: Page) -> Locator:
    """Return what the corner of the page says."""
    return page.locator("#notices .notice")


def wait_for_notice(page: Page, text: str) -> None:
    """Wait for a notice, without the page's pauses between its tries, and for longer than others stay."""

    def is_shown() -> bool:
        page.clock.fast_forward(3_000)
        return any(text in one for one in notice(page).all_inner_texts())

    until(is_shown, text)
    page.clock.fast_forward(LONGER_THAN_A_NOTICE)
    expect(notice(page)).to_contain_text(text)


def catches_up(page: Page) -> None:
    """Later points arrive, the notice goes, and nobody had to load the page."""
    before = page.evaluate(LAST_STEP)
    page.clock.fast_forward(3_000)
    until(lambda: page.evaluate(LAST_STEP) > before + 1, "points after the line was back")
    expect(notice(page)).to_have_count(0)
    assert page.evaluate("window.loadedOnce")


def test_a_server_that_is_gone(remote: Page, proxy: Proxy, long_run: int) -> None:
    watch(remote, long_run)
    proxy.refuse()
    wait_for_notice(remote, GONE)
    proxy.heal()
    catches_up(remote)


def test_a_server_that_is_silent(remote: Page, proxy: Proxy, long_run: int) -> None:
    watch(remote, long_run)
    proxy.black_hole()
    wait_for_notice(remote, GONE)
    proxy.heal()
    catches_up(remote)


def test_a_database_that_is_away(installation: Installation, page: Page, long_run: int) -> None:
    watch(page, long_run)
    file = installation.folder / "data" / "db.sqlite3"
    aside = file.with_name("elsewhere.sqlite3")
    file.rename(aside)
    # A folder in its place, because SQLite would begin a new file.
    file.mkdir()
    try:
        wait_for_notice(page, GONE)
    finally:
        file.rmdir()
        aside.rename(file)
    catches_up(page)


def test_a_session_that_has_ended(
    installation: Installation, browser: Browser, mara: Person, long_run: int
) -> None:
    with browser.new_context(base_url=installation.url) as window:
        page, other = window.new_page(), window.new_page()
        sign_in(page, mara)
        watch(page, long_run)
        other.goto("/")
        other.locator(".menu-right summary").click()
        other.get_by_role("button", name="Sign out").click()
        wait_for_notice(page, EXPIRED)
        expect(notice(page).get_by_role("link", name="Sign in")).to_be_visible()
        sign_in(other, mara)
        catches_up(page)


def test_a_first_question_that_is_refused(page: Page, long_run: int) -> None:
    def refuse(route: Route) -> None:
        route.fulfill(status=503, body="Back in a moment")

    page.clock.install()
    page.route("**/metrics/", refuse, times=1)
    page.goto(f"/runs/{long_run}/")
    page.evaluate("window.loadedOnce = true")
    catches_up(page)
