"""Answers of two subjects side by side: who was better where, by text and by page."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import EvaluationItem, Study, User
from dashboard.models.study_items import confusion, pairs
from tests.dashboard.test_study_result import study

__all__ = ["study"]


def ask(client: Client, study: Study, query: str = "") -> str:
    """The page with this choice."""
    answer = client.get(reverse("study-items", args=[study.pk]) + query)
    assert answer.status_code == 200
    return answer.content.decode()


def test_it_shows_where_the_first_is_better_than_the_second(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    page = ask(client, study, "?one=quality&other=mlp&show=wins")
    assert "30 rows" in page
    assert "Row 11, prompt" in page
    assert "Row 10, prompt" not in page
    assert "No rows of this kind" in ask(client, study, "?one=quality&other=mlp&show=losses")


def test_the_base_model_can_be_either_of_them(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    assert "35 rows" in ask(client, study, "?one=quality&other=base")
    assert "35 rows" in ask(client, study, "?one=base&other=quality&show=losses")


def test_it_finds_rows_by_their_text(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    EvaluationItem.objects.filter(row=12).update(prompt="Where is my PARCEL?")
    page = ask(client, study, "?one=quality&other=mlp&text=parcel")
    assert "PARCEL" in page
    assert page.count("sample-prompt") == 1


@pytest.mark.parametrize("query", ["?one=nobody", "?seed=99", "?seed=x", "?show=no", "?page=999"])
def test_a_choice_that_is_none_is_no_crash(client: Client, vera: User, study: Study, query: str) -> None:
    client.force_login(vera)
    ask(client, study, query)


def test_a_pair_is_better_in_the_direction_of_the_metric(study: Study) -> None:
    gaps = [pair.gap for pair in pairs(study, "quality", "mlp", 1)]
    assert (sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)) == (30, 0)


def test_labels_that_are_mixed_up_are_counted() -> None:
    answers = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "b"), ("b", "none of them")]
    found = confusion([EvaluationItem(expected=expected, output=output) for expected, output in answers])
    assert found == (["b", "a"], [("b", [2, 0, 1]), ("a", [1, 1, 0])])


def test_free_text_has_no_confusion() -> None:
    items = [EvaluationItem(expected=f"answer {number}", output="x") for number in range(9)]
    assert confusion(items) is None


def test_an_outsider_sees_no_rows(client: Client, otto: User, study: Study) -> None:
    client.force_login(otto)
    assert client.get(reverse("study-items", args=[study.pk])).status_code == 404
