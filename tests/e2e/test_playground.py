"""The playground in a browser: two answers side by side while a training runs, and a stop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from tests.e2e.installation import Api, start_run, until

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
    assert problems == []


def test_stop_ends_answers_and_the_next_prompt_is_answered(page: Page, address: str) -> None:
    page.goto(address)
    send(page, "A", 900)
    until(lambda: page.locator("[data-answer]").first.text_content() != "", "the first tokens", 120)
    page.get_by_role("button", name="Stop").click()
    page.locator("#playground-stop").wait_for(state="hidden")
    send(page, "B", 2)
    wait_for_answers(page)
