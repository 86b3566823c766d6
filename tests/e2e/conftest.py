"""One real installation for all browser tests: `manage.py start`, a tiny model, Chromium, people and rows.

Everything is reached as people reach it: over HTTP, with the set-up code, or by `manage.py create_account`.
The fixtures end with this package, because Playwright's event loop would keep Django's ORM from later tests.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from django.conf import settings
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.conftest import PASSWORD
from tests.e2e.installation import OVER, Api, Installation, Person, launch, sign_in, until

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
COLOURS = ("red", "green", "blue", "grey")
STOP_SECONDS = 60
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


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="package")
def installation(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Graftworks as `make start` runs it, on a port of its own, with the tiny model as the bundled one."""
    folder = tmp_path_factory.mktemp("installation")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PORT": str(free_port()),
        "DATA_DIR": str(folder / "data"),
        "BUNDLED_MODEL_DIR": str(tiny_folder),
        "OMP_NUM_THREADS": "1",
        # All tests share one token.
        "API_READS_PER_MINUTE": "100000",
        "API_WRITES_PER_MINUTE": "100000",
    }
    running = launch(environment, folder / "start.log")
    try:
        yield running
    finally:
        family = psutil.Process(running.process.pid).children(recursive=True)
        running.process.send_signal(signal.SIGTERM)
        try:
            status = running.process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(running.process.pid, signal.SIGKILL)
            raise
    assert status == 0, running.log_tail()
    _gone, left = psutil.wait_procs(family, timeout=2)
    assert not left, left


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A real Chromium. A machine without one fails the tests: skipped, they would prove nothing."""
    names = [os.environ.get("CHROMIUM"), *BROWSERS]
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path is None:
        pytest.fail(
            "There is no Chromium on PATH, and CHROMIUM does not name one. On Debian: apt install chromium"
        )
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield chromium
        chromium.close()


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
    """Whether the run has evaluations and none of them is under way."""
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
