"""Blind answers: the page without names, votes and who may cast them, and the preference they show."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dashboard.models import Adapter, BlindComparison, Project, TrainingRun, User
from dashboard.models.operations.retention import old_rows
from dashboard.presenters.playground import playground
from tests.dashboard.adapters.test_playground import send
from tests.dashboard.routes import publish_adapter


@pytest.fixture
def adapter(run: TrainingRun) -> Adapter:
    return publish_adapter(run)


def compare(
    adapter: Adapter, voter: User | None, prompt: str = "Hello", *, swapped: bool = False
) -> BlindComparison:
    """Store two blind answers: of the adapter and of the base model, or the other way round."""
    order = [None, adapter] if swapped else [adapter, None]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
    return BlindComparison.record(
        adapter.project, adapter.base_model, order, messages, ["one", "two"], voter=voter
    )


def vote(client: Client, comparison: BlindComparison, choice: str = "a") -> Any:
    return client.post(reverse("playground-vote"), {"comparison": comparison.token(), "vote": choice})


def test_blind_columns_name_no_model(client: Client, vera: User, adapter: Adapter) -> None:
    client.force_login(vera)
    address = f"{reverse('playground')}?column=base&column={adapter.pk}"
    assert f'data-column="{adapter.pk}"' in client.get(address).content.decode()
    page = client.get(f"{address}&blind=1").content.decode()
    assert 'data-column="A"' in page
    assert f'data-column="{adapter.pk}"' not in page


def test_one_model_alone_is_not_blind(project: Project, vera: User, adapter: Adapter) -> None:
    assert not playground(project, vera, "", ["base"], blind=True).is_blind


def test_blind_answers_need_two_models(client: Client, vera: User, adapter: Adapter) -> None:
    client.force_login(vera)
    values = {"base": adapter.base_model_id, "column": ["base", "base"], "blind": "1"}
    assert send(client, **values).status_code == 422


def test_a_vote_is_stored_and_names_the_models(client: Client, vera: User, adapter: Adapter) -> None:
    comparison = compare(adapter, vera, swapped=True)
    client.force_login(vera)
    answer = vote(client, comparison, "b")
    assert [column["label"] for column in answer.json()["columns"]] == ["Base model", str(adapter)]
    comparison.refresh_from_db()
    assert (comparison.vote, comparison.voter, comparison.system) == ("b", vera, "Be brief.")
    assert comparison.voted_at


def test_a_vote_is_final(client: Client, vera: User, adapter: Adapter) -> None:
    comparison = compare(adapter, vera)
    client.force_login(vera)
    vote(client, comparison, "equal")
    assert vote(client, comparison, "a").status_code == 409
    comparison.refresh_from_db()
    assert comparison.vote == "equal"


@pytest.mark.parametrize("choice", ["", "c", "A", "better"])
def test_an_unknown_vote_is_refused(client: Client, vera: User, adapter: Adapter, choice: str) -> None:
    client.force_login(vera)
    comparison = compare(adapter, vera)
    assert vote(client, comparison, choice).status_code == 422
    assert BlindComparison.objects.open().count() == 1


def test_only_the_one_who_got_the_answers_votes(
    client: Client, vera: User, ed: User, otto: User, adapter: Adapter
) -> None:
    comparison = compare(adapter, vera)
    for other in (ed, otto):
        client.force_login(other)
        assert vote(client, comparison).status_code == 404
    client.force_login(vera)
    for token in ("", "1", str(comparison.pk), f"{comparison.pk}:forged"):
        assert client.post(reverse("playground-vote"), {"comparison": token, "vote": "a"}).status_code == 404


def test_answers_without_a_vote_are_deleted_after_a_day(vera: User, adapter: Adapter) -> None:
    old, voted, fresh = (compare(adapter, vera) for _number in range(3))
    voted.cast("a")
    BlindComparison.objects.exclude(pk=fresh.pk).update(created_at=timezone.now() - timedelta(days=2))
    assert not old.cast("a")
    list(old_rows())
    assert set(BlindComparison.objects.all()) == {voted, fresh}


def test_the_majority_per_prompt_is_the_preference(vera: User, ed: User, adapter: Adapter) -> None:
    for prompt, swapped, choice in (
        ("1", False, "a"),
        ("1", True, "b"),
        ("1", False, "b"),
        ("2", True, "a"),
        ("3", False, "equal"),
        ("4", True, "b"),
    ):
        compare(adapter, vera, prompt, swapped=swapped).cast(choice)
    compare(adapter, ed, "5")
    found = BlindComparison.objects.all().preferences(adapter.base_model, [(adapter.pk, None)])
    preference = found[adapter.pk, None].preference
    assert (preference.wins, preference.losses, preference.equal) == (2, 1, 1)


def test_compare_shows_the_preference_of_its_runs(client: Client, vera: User, adapter: Adapter) -> None:
    client.force_login(vera)
    address = f"{reverse('compare')}?runs={adapter.run_id}"
    assert 'id="preferences"' not in client.get(address).content.decode()
    for number, choice in enumerate("aaab"):
        compare(adapter, vera, str(number)).cast(choice)
    shown = client.get(address)
    row = shown.context["preferences"][0]
    assert (row["first"], row["second"], row["votes"].share) == (str(adapter), "Base model", 0.75)
    card = shown.text.partition('id="preferences"')[2]
    # Wilson's interval of 3 in 4.
    assert re.findall(r">(.*?)</td>", card)[:2] == ["75.0 %", "30.1 % – 95.4 %"]
