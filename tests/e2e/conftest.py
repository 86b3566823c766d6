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
    OVER,
    Api,
    Installation,
    Person,
    run_chromium,
    run_installation,
    sign_in,
    until,
)

COLOURS = ("red", "green", "blue", "grey")
# Other tests keep the machine busy beside these.
expect.set_options(timeout=20_000)
RESULTS = Path(settings.BASE_DIR) / "test-results"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first visit comes first: there is only one, and every other test leaves an account behind."""
    items.sort(key=lambda item: item.path.name != "test_first_adapter.py")


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
    window.set_default_timeout(20_000)
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
    """A short run with its adapter and its evaluation."""
    hyper = {"max_steps": 20, "max_length": 128, "learning_rate": 1e-3}
    asked = {
        "name": "Colours",
        "dataset": dataset,
        "target_module_config": "efficient",
        "hyperparameters": hyper,
    }
    run = api.post("/runs", asked)["id"]
    assert api.wait(f"/runs/{run}")["state"] == "succeeded"
    until(lambda: all_ended(api, run), "the evaluation", seconds=90)
    return int(run)


def all_ended(api: Api, run: int) -> bool:
    """Return whether the run has evaluations and none of them is under way."""
    found = api.get(f"/runs/{run}/evaluations")["data"]
    return bool(found) and all(one["state"] in OVER for one in found)


@pytest.fixture(scope="module")
def long_run(api: Api, dataset: int) -> Iterator[int]:
    """A run that trains through all tests of a file."""
    hyper = {"max_steps": 60_000, "max_length": 128, "per_device_train_batch_size": 1}
    asked = {
        "name": "Long",
        "dataset": dataset,
        "target_module_config": "efficient",
        "hyperparameters": hyper,
    }
    run = api.post("/runs", asked)["id"]
    until(lambda: api.get(f"/runs/{run}")["step"] > 0, "the first step", seconds=90)
    yield run
    api.call("POST", f"/runs/{run}/cancel")
