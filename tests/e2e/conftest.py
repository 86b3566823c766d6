"""One real installation for all browser tests: `manage.py start`, a tiny model, Chromium, people and rows.

Everything is reached as people reach it: over HTTP, with the set-up code, or by `manage.py create_account`.
The fixtures end with this package, because Playwright's event loop would keep Django's ORM from later tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.conftest import PASSWORD
from tests.e2e.installation import (
    Api,
    Installation,
    Person,
    run_chromium,
    run_installation,
    sign_in,
    start_run,
    until,
)

COLOURS = ("red", "green", "blue", "grey")
# Other tests keep the machine busy beside these.
expect.set_options(timeout=60_000)
RESULTS = Path(settings.BASE_DIR) / "test-results"


# There is only one first visit, and one end. The files before it share one run, which keeps a worker busy.
FIRST = ["test_first_adapter.py"]
LAST = ["test_lost_line.py", "test_live_stream.py", "test_start_command.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files."""
    order = {name: place for place, name in enumerate([*FIRST, "", *LAST])}
    items.sort(key=lambda item: order.get(item.path.name, order[""]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Leave what the browser showed, and what the programs said, beside a failed test."""
    report = yield
    if report.failed and item.path.parent == Path(__file__).parent:  # type: ignore[attr-defined]
        keep_evidence(item)
    return report  # type: ignore[return-value]


def keep_evidence(item: pytest.Item) -> None:
    """Screenshot, HTML and the log's end, under test-results/."""
    folder = RESULTS / re.sub(r"\W+", "-", item.name)
    folder.mkdir(parents=True, exist_ok=True)
    fixtures = getattr(item, "funcargs", {})
    for name, page in fixtures.items():
        if isinstance(page, Page) and not page.is_closed():
            page.screenshot(path=folder / f"{name}.png", full_page=True)
            (folder / f"{name}.html").write_text(page.content())
    if "installation" in fixtures:
        (folder / "start.log").write_text(fixtures["installation"].log_tail(300))


@pytest.fixture(scope="package")
def installation(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Graftworks as `make start` runs it, on a port of its own, with the tiny model as the bundled one."""
    with run_installation(tmp_path_factory.mktemp("installation"), tiny_folder) as running:
        yield running


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A real Chromium. A machine without one fails the tests: skipped, they would prove nothing."""
    with run_chromium() as chromium:
        yield chromium


@pytest.fixture(scope="package")
def mara(installation: Installation, browser: Browser) -> Person:
    """Manages the project Support, whichever test comes first; her session lies in a file."""
    person = Person("mara@example.org", PASSWORD, installation.folder / "mara.json")
    installation.create_account(person, project="Support", role="manager", superuser=True)
    context = browser.new_context(base_url=installation.url)
    sign_in(context.new_page(), person)
    context.storage_state(path=person.session)
    context.close()
    return person


@pytest.fixture(scope="package")
def api(installation: Installation, mara: Person) -> Api:
    """The API with a token of Mara's project."""
    return Api(
        installation.url, installation.create_account(mara, project="Support", role="manager", token=True)
    )


@pytest.fixture
def context(installation: Installation, browser: Browser, mara: Person) -> Iterator[BrowserContext]:
    """A browser window in which Mara is signed in."""
    window = browser.new_context(base_url=installation.url, storage_state=mara.session)
    window.set_default_timeout(60_000)
    yield window
    window.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    """A tab of Mara's."""
    return context.new_page()


@pytest.fixture(scope="package")
def dataset(api: Api) -> int:
    """Forty numbers with their colours, imported."""
    lines = (f'{{"prompt": "Colour of {n}?", "completion": "{COLOURS[n % 4]}"}}\n' for n in range(40))
    sent = api.upload("colours.jsonl", "".join(lines).encode(), name="Colours")
    assert sent.status == 202, sent.body
    found = api.wait(f"/datasets/{sent.json()['id']}")
    assert found["state"] == "succeeded", found
    return int(found["id"])


@pytest.fixture(scope="package")
def finished_run(api: Api, dataset: int) -> int:
    """A run with its adapter and its evaluations: that of an earlier test, or one of its own."""
    for found in api.get("/runs?limit=200")["data"]:
        if found["state"] == "succeeded" and is_scored(api, found["id"]):
            return int(found["id"])
    run = start_run(api, dataset, "Colours", max_steps=20, learning_rate=1e-3)
    assert api.wait(f"/runs/{run}")["state"] == "succeeded"
    until(lambda: is_scored(api, run), "the evaluation")
    return run


def is_scored(api: Api, run: int) -> bool:
    """Return whether the run has evaluations and all of them have succeeded."""
    found = api.get(f"/runs/{run}/evaluations")["data"]
    return bool(found) and all(one["state"] == "succeeded" for one in found)


@pytest.fixture(scope="package")
def long_run(api: Api, dataset: int) -> int:
    """A run that trains until a test stops it."""
    run = start_run(api, dataset, "Long", max_steps=60_000, learning_rate=2e-4, per_device_train_batch_size=1)
    until(lambda: api.get(f"/runs/{run}")["step"] > 0, "the first step")
    return run
