"""The first visit, from the set-up code to the downloaded adapter: one journey, in people's order."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import PASSWORD
from tests.e2e.audit import complaints, faults
from tests.e2e.installation import POINTS, Installation, until

pytestmark = pytest.mark.slow

# Counts what a person clicks, over all pages of the tab.
COUNT_CLICKS = """
addEventListener("click", (event) => {
  if (event.isTrusted && event.detail) sessionStorage.clicks = Number(sessionStorage.clicks ?? 0) + 1;
}, true);
"""


@pytest.fixture(scope="module")
def visitor(installation: Installation, browser: Browser) -> Iterator[Page]:
    """The tab of somebody who has just started Graftworks."""
    window = browser.new_context(base_url=installation.url)
    window.add_init_script(COUNT_CLICKS)
    window.set_default_timeout(60_000)
    yield window.new_page()
    window.close()


@pytest.fixture(scope="module")
def downloaded(visitor: Page, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder from the zip that the adapter's page hands out."""
    visitor.get_by_role("link", name=re.compile("^Download")).first.wait_for()
    with visitor.expect_download() as download:
        visitor.get_by_role("link", name=re.compile("^Download")).first.click()
    folder = tmp_path_factory.mktemp("downloaded")
    download.value.save_as(folder / "adapter.zip")
    with zipfile.ZipFile(folder / "adapter.zip") as archive:
        assert archive.testzip() is None
        archive.extractall(folder / "adapter")
    return next((folder / "adapter").rglob("adapter_config.json")).parent


def fill_set_up(page: Page, code: str) -> None:
    page.get_by_label("Set-up code").fill(code)
    page.get_by_label("Email address").fill("mara@example.org")
    page.get_by_label("Your name").fill("Mara")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Project name").fill("Support")
    page.get_by_role("button", name="Create account and project").click()


def test_the_first_visit_asks_for_the_code_and_refuses_a_wrong_one(visitor: Page) -> None:
    visitor.goto("/runs/")
    expect(visitor).to_have_url(re.compile("/set-up/$"))
    fill_set_up(visitor, "not-the-code")
    expect(visitor.get_by_role("alert")).to_contain_text("The code is wrong")
    expect(visitor.get_by_label("Email address")).to_have_value("mara@example.org")


def test_the_set_up_page_is_accessible_and_quiet(visitor: Page) -> None:
    # A tab of its own: the audit changes theme and size.
    page = visitor.context.new_page()
    with complaints(page) as complained:
        page.goto("/set-up/")
        assert faults(page, "set-up") == []
    assert complained == []
    page.close()


def test_the_code_makes_the_first_account_and_works_once(visitor: Page, installation: Installation) -> None:
    fill_set_up(visitor, installation.code)
    expect(visitor).to_have_url(f"{installation.url}/")
    expect(visitor.get_by_role("heading", name="Home", exact=True)).to_be_visible()
    assert visitor.request.get("/set-up/").status == 404


def test_three_clicks_lead_from_home_to_a_running_sample(visitor: Page) -> None:
    visitor.goto("/")
    visitor.evaluate("sessionStorage.removeItem('clicks')")
    visitor.get_by_role("button", name="Use the sample").click()
    # The page renews itself when the import has ended.
    visitor.get_by_role("main").get_by_role("link", name="Fine-tune", exact=True).click(timeout=60_000)
    visitor.get_by_role("button", name="Start fine-tune").click()
    visitor.wait_for_url(re.compile(r"/runs/\d+/$"))
    assert visitor.evaluate("sessionStorage.clicks") == "3"


def test_the_run_page_follows_the_run_to_its_end_without_a_reload(visitor: Page) -> None:
    visitor.evaluate("window.loadedOnce = true")
    until(lambda: visitor.evaluate(POINTS) > 0, "the first point of the curve")
    expect(visitor.locator("[data-settled=yes]").first).to_be_attached(timeout=120_000)
    expect(visitor.get_by_text("Finished").first).to_be_visible()
    assert visitor.evaluate("window.loadedOnce"), "the page was loaded anew"
    points = visitor.evaluate(POINTS)
    visitor.reload()
    until(lambda: visitor.evaluate(POINTS) == points, "the whole curve again")


def test_the_evaluation_shows_base_and_adapter_side_by_side(visitor: Page) -> None:
    result = visitor.get_by_role("region", name="Base model and adapter on the same test rows")
    expect(result).to_contain_text("Exact match")
    answers = visitor.get_by_role("region", name="Answers on test rows")
    expect(answers.get_by_role("article").first).to_contain_text("Expected")
    expect(answers.get_by_role("article").first).to_contain_text("Base model")


def test_the_adapter_page_leads_back_to_data_and_run(visitor: Page) -> None:
    visitor.get_by_role("region", name="Adapter", exact=True).get_by_role("link").click()
    visitor.wait_for_url(re.compile(r"/adapters/\d+/$"))
    lineage = visitor.get_by_role("region", name="Lineage")
    expect(lineage.get_by_role("link", name=re.compile("#1$"))).to_be_visible()
    expect(lineage.get_by_role("link", name=re.compile(":v1$"))).to_be_visible()


def test_the_zip_is_complete_and_its_checksums_hold(downloaded: Path) -> None:
    names = {path.name for path in downloaded.iterdir()}
    expected = {"adapter_config.json", "adapter_model.safetensors", "README.md", "run.json", "eval.json"}
    assert expected <= names, names
    listed = (line.split(maxsplit=1) for line in (downloaded / "SHA256SUMS").read_text().splitlines())
    sums = {name.lstrip("*"): digest for digest, name in listed}
    assert set(sums) == names - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((downloaded / name).read_bytes()).hexdigest() == digest, name
    subjects = {one["subject"] for one in json.loads((downloaded / "eval.json").read_text())}
    assert subjects == {"base", "adapter"}


def test_no_file_of_the_zip_names_a_path_of_the_server(
    downloaded: Path, installation: Installation, tiny_folder: Path
) -> None:
    for path in downloaded.iterdir():
        content = path.read_bytes()
        assert not path.name.endswith((".bin", ".pt", ".pkl"))
        for folder in (installation.folder, tiny_folder, Path(__file__).parents[2], Path.home()):
            assert str(folder).encode() not in content, (path.name, folder)
    config = json.loads((downloaded / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert config["target_modules"] == sorted(config["target_modules"])
