"""Prompt sets: saved from the playground, with answers that are stored once per model."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.chat_relay import ChatModel
from dashboard.models import Adapter, Job, PromptAnswer, PromptSet, SavedPrompt, TrainingRun, User
from dashboard.models.evaluations import prompt_set as limits
from dashboard.presenters.playground import playground
from dashboard.presenters.prompt_sets import answer_table
from dashboard.views.evaluations.prompt_sets import missing, store
from tests.dashboard.routes import publish_adapter


@pytest.fixture
def adapter(run: TrainingRun) -> Adapter:
    return publish_adapter(run)


@pytest.fixture
def prompts(adapter: Adapter, ed: User) -> PromptSet:
    """A set of two prompts."""
    for text in ("Hello", "Bye"):
        found = PromptSet.objects.save_prompt(adapter.project, ed, "Greetings", "Be brief.", text)
    return found


def save(client: Client, **values: str) -> Any:
    return client.post(
        reverse("prompt-set-save"), {"prompt_set": "Greetings", "system": "", "prompt": "Hello"} | values
    )


def test_a_prompt_makes_a_set_and_the_next_one_joins_it(client: Client, ed: User, adapter: Adapter) -> None:
    client.force_login(ed)
    first, second = save(client, system="Be brief."), save(client, prompt="Bye")
    found = PromptSet.objects.get()
    assert first.json()["url"] == second.json()["url"] == found.get_absolute_url()
    assert list(found.prompts.values_list("system", "prompt")) == [("Be brief.", "Hello"), ("", "Bye")]
    assert [saved.prompt for saved in playground(adapter.project, ed, "", []).saved] == ["Hello", "Bye"]


def test_line_ends_of_a_browser_are_those_of_the_dataset(client: Client, ed: User, adapter: Adapter) -> None:
    client.force_login(ed)
    save(client, system=" Be\r\nbrief.\r\n", prompt="One\r\n\r\ntwo ")
    saved = SavedPrompt.objects.get()
    assert (saved.system, saved.prompt) == (" Be\nbrief.\n", "One\n\ntwo ")


def test_a_set_with_limits(client: Client, ed: User, monkeypatch: pytest.MonkeyPatch) -> None:
    client.force_login(ed)
    save(client)
    assert save(client).status_code == 422
    monkeypatch.setattr(limits, "MOST_PROMPTS", 1)
    assert save(client, prompt="More").status_code == 422
    monkeypatch.setattr(limits, "MOST_SETS", 1)
    assert save(client, prompt_set="Another").status_code == 422
    assert SavedPrompt.objects.count() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_set": ""},
        {"prompt_set": "x" * 81},
        {"prompt": ""},
        {"prompt": "x" * 10_001},
        {"prompt": "\0"},
    ],
)
def test_a_wrong_prompt_is_not_saved(client: Client, ed: User, wrong: dict[str, str]) -> None:
    client.force_login(ed)
    answer = save(client, **wrong)
    assert answer.status_code == 422
    assert answer.json()["text"]
    assert not PromptSet.objects.exists()


def test_every_model_answers_each_prompt_once(prompts: PromptSet, adapter: Adapter, ed: User) -> None:
    base, tuned = ChatModel(adapter.base_model), ChatModel(adapter.base_model, adapter)
    first, second = prompts.prompts.all()
    assert len(missing(prompts, [base, tuned, base])) == 4
    for text in ("one", "two"):
        assert store(first, base, text, False) == ""
        assert store(first, tuned, text, True) == ""
    assert missing(prompts, [base, tuned]) == [(second, base), (second, tuned)]
    table = answer_table(prompts, ed, "", ["base", str(adapter.pk)])
    assert [answer and answer.text for _column, answer in table.rows[0].cells] == ["two", "two"]
    assert table.missing == 2
    assert PromptAnswer.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_the_answer_to_a_deleted_prompt_is_no_crash(prompts: PromptSet, adapter: Adapter) -> None:
    first = prompts.prompts.first()
    assert first
    SavedPrompt.objects.filter(pk=first.pk).delete()
    assert store(first, ChatModel(adapter.base_model), "one", False)


def test_the_page_shows_answers_side_by_side(
    client: Client, vera: User, prompts: PromptSet, adapter: Adapter
) -> None:
    first = prompts.prompts.first()
    assert first
    store(first, ChatModel(adapter.base_model, adapter), "<b>bold</b>", False)
    client.force_login(vera)
    page = client.get(f"{prompts.get_absolute_url()}?column=base&column={adapter.pk}").content.decode()
    assert "&lt;b&gt;bold" in page
    assert 'id="prompt-set"' not in page, "a viewer stores nothing"


def test_models_of_another_base_or_project_are_refused(client: Client, ed: User, prompts: PromptSet) -> None:
    client.force_login(ed)
    address = reverse("prompt-set-answer", args=[prompts.pk])
    for values in ({}, {"base": "999999", "column": "base"}, {"base": "1", "column": "999999"}):
        assert client.post(address, values).status_code == 422
    assert not Job.objects.filter(kind=Job.Kind.SERVE).exists()


def test_a_prompt_of_another_set_is_not_deleted(client: Client, ed: User, prompts: PromptSet) -> None:
    other = PromptSet.objects.save_prompt(prompts.project, ed, "Other", "", "Hi")
    client.force_login(ed)
    foreign = other.prompts.get().pk
    assert client.post(reverse("prompt-set-delete-prompt", args=[prompts.pk, foreign])).status_code == 404
    assert client.post(reverse("prompt-set-delete-prompt", args=[other.pk, foreign])).status_code == 302
    client.post(reverse("prompt-set-delete", args=[prompts.pk]))
    assert list(PromptSet.objects.all()) == [other]
    assert not SavedPrompt.objects.exists()
