"""Wrong values in a browser: refused beside the field, or told on the page of what failed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.installation import Api, start_run

pytestmark = pytest.mark.slow

BINARY = b"\x7fELF\x02\x01\x01\x00" + bytes(range(256)) * 20
BAD_FILES = {
    "none.json": b"[]",
    "program.parquet": BINARY,
    "long.jsonl": b'{"prompt": "' + b"a" * 5_000_000 + b'", "completion": "b"}\n',
    "empty-answers.jsonl": b'{"prompt": "a", "completion": ""}\n' * 3,
}


def test_the_page_of_a_bad_file_tells_its_failure_in_the_words_of_the_api(api: Api, page: Page) -> None:
    sent = [api.upload(name, content, name=f"Bad {name}").json()["id"] for name, content in BAD_FILES.items()]
    for pk in sent:
        found = api.wait(f"/datasets/{pk}")
        assert found["state"] == "failed", found
        message = found["error"]["message"]
        assert len(message) > 20, message
        assert not re.search(r"Traceback|Error\(|0x|/tmp|\.py", message), message
        page.goto(f"/datasets/{pk}/")
        # The page sets `names` as code, without the marks.
        expect(page.locator("main")).to_contain_text(" ".join(message.replace("`", "").split()))


def test_the_upload_form_refuses_in_place_and_keeps_what_was_typed(page: Page, tmp_path: Path) -> None:
    page.goto("/datasets/new/")
    page.get_by_label(re.compile("^Name")).fill("My name for it")
    page.get_by_role("button", name="Upload and import").click()
    expect(page.get_by_role("alert").first).to_contain_text("File")
    wrong = tmp_path / "program.exe"
    wrong.write_bytes(BINARY)
    page.get_by_label("File", exact=True).set_input_files(wrong)
    page.get_by_role("button", name="Upload and import").click()
    expect(page.get_by_role("alert").first).to_contain_text("program.exe cannot be imported")
    expect(page.get_by_label(re.compile("^Name"))).to_have_value("My name for it")
    (tmp_path / "empty.csv").touch()
    page.get_by_label("File", exact=True).set_input_files(tmp_path / "empty.csv")
    expect(page.locator("[data-problem]")).to_contain_text("This file is empty")


def test_the_fine_tune_form_refuses_beside_the_fields_and_keeps_what_was_typed(
    page: Page, dataset: int
) -> None:
    page.goto(f"/fine-tune/?dataset={dataset}")
    page.get_by_role("heading", name="Expert settings").click()
    page.get_by_text("Own length and learning rate").click()
    page.locator("#id_r").fill("0")
    page.locator("#id_learning_rate").fill("1e9")
    page.locator("#id_max_steps").fill("-5")
    page.get_by_role("button", name="Start fine-tune").click()
    summary = page.locator(".error-summary")
    expect(summary).to_be_focused()
    expect(summary.get_by_role("listitem")).to_have_count(3)
    expect(page.locator("#id_r")).to_have_value("0")
    expect(page.locator("#id_learning_rate")).to_have_value("1e9")
    expect(page.locator("#id_r")).to_have_attribute("aria-invalid", "true")


def test_a_form_that_was_open_during_a_new_sign_in_is_accepted(page: Page) -> None:
    page.goto("/settings/tokens/")
    page.get_by_label("Name", exact=True).fill("From an old tab")
    # Signing in renews the token in the cookie, and the one in an open form stays as it was.
    page.locator("main [name=csrfmiddlewaretoken]").evaluate_all(
        "fields => fields.forEach(f => f.value = 'x'.repeat(64))"
    )
    page.get_by_role("button", name="Create token").click()
    expect(page.locator("#new-token")).to_be_visible()


def test_an_ended_session_takes_nothing_from_an_open_form(page: Page, dataset: int) -> None:
    page.goto(f"/fine-tune/?dataset={dataset}")
    page.context.clear_cookies(name="session")
    page.get_by_label(re.compile("^Name")).fill("Typed at night")
    expect(page.locator("#notices").get_by_role("link", name="Sign in")).to_be_visible()
    expect(page.get_by_label(re.compile("^Name"))).to_have_value("Typed at night")


def test_an_upload_after_the_session_keeps_the_chosen_file(page: Page, tmp_path: Path) -> None:
    page.goto("/datasets/new/")
    page.context.clear_cookies(name="session")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    page.get_by_label("File", exact=True).set_input_files(tmp_path / "rows.jsonl")
    page.get_by_role("button", name="Upload and import").click()
    expect(page.locator("[data-problem]")).to_contain_text("Your session has ended")
    expect(page.get_by_label(re.compile("^Name"))).to_have_value("rows")


def test_a_run_that_cannot_learn_says_so_with_the_numbers(api: Api, dataset: int, page: Page) -> None:
    run = start_run(api, dataset, "Cut off", max_steps=2, max_length=16)
    error = api.wait(f"/runs/{run}")["error"]
    assert re.search(r"\d", error["message"]), error
    page.goto(f"/runs/{run}/")
    expect(page.get_by_role("region", name="This run failed")).to_contain_text(error["message"])
