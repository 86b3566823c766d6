"""The playground in a browser: answers side by side while a training runs, a stop, a closed tab, a vote."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.audit import complaints, faults
from tests.e2e.installation import Api, Installation, start_run, until

pytestmark = pytest.mark.slow


@pytest.fixture
def address(api: Api, finished_run: int) -> str:
    """The address of the playground with the base model and an adapter."""
    adapter = next(one for one in api.get("/adapters")["data"] if one["run"] == finished_run)
    return f"/playground/?column=base&column={adapter['id']}"


@pytest.fixture
def training(api: Api, dataset: int) -> Iterator[int]:
    """A run that trains until the test ends, of its own: the queue is free for the tests after this one."""
    run = start_run(api, dataset, "Meanwhile", max_steps=60_000, per_device_train_batch_size=1)
    until(lambda: api.get(f"/runs/{run}")["step"] > 0, "the first step")
    yield run
    api.call("POST", f"/runs/{run}/cancel")
    api.wait(f"/runs/{run}")


def send(page: Page, prompt: str, tokens: int) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.locator("details.playground-settings").evaluate("details => details.open = true")
    page.get_by_label("Longest answer").fill(str(tokens))
    page.get_by_role("button", name="Send").click()


def wait_for_answers(page: Page, seconds: float = 120) -> None:
    facts = page.locator("[data-column] dl:visible")
    until(lambda: facts.count() == 2, "both answers", seconds)


def test_two_models_answer_while_a_training_runs(page: Page, address: str, api: Api, training: int) -> None:
    problems: list[str] = []
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    step = api.get(f"/runs/{training}")["step"]
    send(page, "Colour of 7?", 40)
    wait_for_answers(page)
    answers = page.locator("[data-answer]").all_text_contents()
    assert len(answers) == 2
    assert answers[0] != answers[1]
    assert all(page.locator("[data-first]").nth(column).text_content() for column in (0, 1))
    until(lambda: api.get(f"/runs/{training}")["step"] > step, "a step of the training")
    page.get_by_label("Wait until the training has ended").check()
    send(page, "Colour of 7?", 40)
    until(lambda: "Waiting" in (page.locator("#playground-state").text_content() or ""), "the wait")
    assert page.locator("[data-answer]").all_text_contents() == ["", ""]
    page.get_by_role("button", name="Stop").click()
    page.locator("#playground-stop").wait_for(state="hidden")
    assert problems == []


def test_stop_ends_answers_and_the_next_prompt_is_answered(page: Page, address: str) -> None:
    page.goto(address)
    send(page, "A", 900)
    until(lambda: page.locator("[data-answer]").first.text_content() != "", "the first tokens", 120)
    page.get_by_role("button", name="Stop").click()
    page.locator("#playground-stop").wait_for(state="hidden")
    send(page, "B", 2)
    wait_for_answers(page)


def test_a_blind_vote_shows_the_names(page: Page, address: str, finished_run: int) -> None:
    page.goto(address)
    page.get_by_label("Compare blind").check()
    page.locator("[data-column=A]").wait_for()
    send(page, "Colour of 8?", 12)
    votes = page.get_by_role("button", name="A is better")
    votes.wait_for(timeout=120_000)
    names = page.locator("[data-name]")
    assert names.all_text_contents() == ["", ""]
    with complaints(page) as complained:
        votes.click()
        until(lambda: all(names.all_text_contents()), "the names")
        assert faults(page, "playground-voted") == []
    assert complained == []
    assert votes.is_disabled()
    page.goto(f"/compare/?runs={finished_run}")
    assert page.locator("#preferences").is_visible()


def chats(installation: Installation) -> int:
    """Return how many connections the inference engine holds; it closes each after it has freed the slot."""
    family = psutil.Process(installation.process.pid).children(recursive=True)
    sockets = [one for process in family for one in process.net_connections("unix")]
    # One of them listens.
    return sum(str(one.laddr).endswith(".sock") and "/base-" in str(one.laddr) for one in sockets) - 1


def test_closing_the_tab_frees_its_slots(
    page: Page, address: str, installation: Installation, measured: Callable[[str], None]
) -> None:
    page.goto(address)
    # By chance an answer of the tiny model ends at once; one that goes on for a second goes on for long.
    for prompt in "ABCDEFGHIJKLMNOPQRST":
        send(page, prompt, 2000)
        until(lambda: page.locator("[data-answer]").first.text_content() != "", "the first tokens", 120)
        time.sleep(1)
        if chats(installation):
            break
        page.locator("#playground-stop").wait_for(state="hidden")
    assert chats(installation), "an answer that goes on"
    page.close()
    closed = time.monotonic()
    until(lambda: chats(installation) == 0, "free slots", 30)
    measured(f"slots free {time.monotonic() - closed:.1f} s after the tab was closed")


def test_a_visitor_compares_blind_behind_a_link(
    page: Page, address: str, browser: Browser, installation: Installation
) -> None:
    page.goto(address)
    page.locator("details.playground-settings").evaluate("details => details.open = true")
    page.get_by_label("Longest answer").fill("12")
    page.get_by_text("Share a try-out link").click()
    page.get_by_role("button", name="Create link").click()
    link = page.locator("#share-address").inner_text()
    visitor = browser.new_page(base_url=installation.url)
    with complaints(visitor) as complained:
        visitor.goto(link)
        visitor.get_by_label("Prompt", exact=True).fill("Colour of 5?")
        visitor.get_by_role("button", name="Send").click()
        equal = visitor.get_by_role("button", name="Equal")
        equal.wait_for(timeout=120_000)
        equal.click()
        until(lambda: "Equal" in (visitor.locator("#vote-state").text_content() or ""), "the vote")
        assert faults(visitor, "try-out-voted") == []
    assert complained == []
    visitor.close()
    page.goto("/team/")
    votes = page.locator("#try-out-links").locator("xpath=ancestor::section").locator("td.num")
    assert [text.strip() for text in votes.all_text_contents()][:2] == ["1 of 200", "1"]


def test_a_saved_prompt_is_answered_by_every_model(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_label("Prompt", exact=True).fill("Colour of 6?")
    page.get_by_text("Save to a prompt set").click()
    page.get_by_label("Prompt set", exact=True).fill("Colours")
    page.get_by_role("button", name="Save prompt").click()
    saved = page.locator("#prompt-saved a")
    saved.wait_for()
    page.goto(f"{saved.get_attribute('href')}{address.removeprefix('/playground/')}")
    with complaints(page) as complained:
        page.get_by_role("button", name="Get 2 missing answers").click()
        page.locator("#prompt-set").wait_for(state="detached", timeout=120_000)
        assert page.get_by_text("No answer yet").count() == 0
    assert complained == []
    page.goto(address)
    page.locator("#example-row").select_option(label="Colour of 6?")
    assert page.get_by_label("Prompt", exact=True).input_value() == "Colour of 6?"
