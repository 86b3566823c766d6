"""Answers of two sides to the same rows: filters, order, text search and pages."""

from __future__ import annotations

import re

import pytest
from django.core.cache import cache
from django.test import Client
from django.urls import reverse

from dashboard.models import EvaluationItem, Study, User
from dashboard.models.evaluations.answers import answer_pairs, count_confusions, study_side


def page_of(client: Client, study: Study, query: str = "") -> str:
    answer = client.get(reverse("study-items", args=[study.pk]) + query)
    assert answer.status_code == 200
    return answer.content.decode()


def test_rows_are_filtered_by_the_better_side(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    page = page_of(client, study, "?one=quality&other=mlp&show=wins")
    assert "30 rows" in page
    assert "Row 11, prompt" in page
    assert "Row 10, prompt" not in page
    assert "No rows match" in page_of(client, study, "?one=quality&other=mlp&show=losses")


def rows_of(page: str) -> list[int]:
    return [int(row) for row in re.findall(r"Row (\d+), prompt", page)]


def test_rows_are_ordered(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    well = rows_of(page_of(client, study, "?one=quality&other=base&show=all&order=high"))
    badly = rows_of(page_of(client, study, "?one=quality&other=base&show=all&order=low"))
    assert (well, badly) == (list(range(1, 11)), list(range(41, 51)))
    assert rows_of(page_of(client, study, "?one=quality&other=mlp&show=all&order=row")) == list(range(1, 11))
    assert rows_of(page_of(client, study, "?one=quality&other=mlp&show=all")) == list(range(11, 21))


def test_best_answers_have_the_lowest_loss(client: Client, vera: User, study: Study) -> None:
    Study.objects.filter(pk=study.pk).update(metric="loss")
    arm = study.arms.get(name="quality")
    for item in EvaluationItem.objects.filter(evaluation__run__study_arm__study=study):
        item.scores = {"loss": float(item.row)}
        item.save()
    client.force_login(vera)
    assert rows_of(page_of(client, study, f"?one={arm.name}&show=all&order=high"))[:3] == [1, 2, 3]
    assert rows_of(page_of(client, study, f"?one={arm.name}&show=all&order=low"))[:3] == [60, 59, 58]


def test_pages_keep_the_query(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    page = page_of(client, study, "?one=quality&other=mlp&show=wins&order=row&page=2")
    assert "2 of 3" in page
    assert "one=quality&amp;other=mlp&amp;show=wins&amp;order=row&amp;page=3" in page
    assert rows_of(page) == list(range(21, 31))


def test_judge_verdicts_are_shown(client: Client, vera: User, study: Study) -> None:
    for item in EvaluationItem.objects.filter(row__lte=12, evaluation__run__study_arm__name="quality"):
        item.scores["judge"] = float(item.row == 11)
        item.save()
    client.force_login(vera)
    page = page_of(client, study, "?one=quality&other=mlp&show=wins")
    assert (page.count("judge: right"), page.count("judge: wrong")) == (1, 1)


def test_text_search_ignores_case_in_any_language(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    EvaluationItem.objects.filter(row=12).update(prompt="Die TÜR klemmt")
    assert rows_of(page_of(client, study, "?one=quality&other=mlp&show=all&text=tür")) == [12]


@pytest.mark.parametrize("query", ["?order=x", "?one=nobody", "?seed=99", "?page=999"])
def test_malformed_queries_open_the_page(client: Client, vera: User, study: Study, query: str) -> None:
    client.force_login(vera)
    page_of(client, study, query)


def test_gap_follows_the_direction_of_the_metric(study: Study) -> None:
    one, other = study_side(study, "quality", 1), study_side(study, "mlp", 1)
    gaps = [pair.gap for pair in answer_pairs(study.metric, one, other, lower_is_better=False)]
    assert (sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)) == (30, 0)
    turned = [pair.gap for pair in answer_pairs(study.metric, one, other, lower_is_better=True)]
    assert (sum(gap > 0 for gap in turned), sum(gap < 0 for gap in turned)) == (0, 30)


def test_judge_scores_are_not_cached(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(cache, "set", lambda key, *_value: kept.append(key))
    one, other = study_side(study, "quality", 1), study_side(study, "mlp", 1)
    for metric in (study.metric, "judge"):
        answer_pairs(metric, one, other, lower_is_better=False)
    assert [key.split("-")[1] for key in kept] == [study.metric]


def test_confusions_of_labels_are_counted() -> None:
    answers = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "b"), ("b", "none of them")]
    assert count_confusions(answers) == (["b", "a"], [("b", [2, 0, 1]), ("a", [1, 1, 0])])


def test_free_text_has_no_confusion_matrix() -> None:
    assert count_confusions([(f"answer {number}", "x") for number in range(9)]) is None
