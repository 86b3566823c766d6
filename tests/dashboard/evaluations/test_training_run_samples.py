"""Answers of base model and adapter side by side: in pairs, filtered and paged."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Evaluation, EvaluationItem, TrainingRun, User
from tests.conftest import finish
from tests.dashboard.conftest import publish


def item(row: int, output: str, expected: str = "yes") -> dict[str, Any]:
    right = float(output == expected)
    return {
        "row": row, "prompt": f"Question {row}?", "expected": expected, "output": output,
        "scores": {"exact_match": right},
    }  # fmt: skip


@pytest.fixture
def evaluated(run: TrainingRun) -> TrainingRun:
    """Twelve rows: the adapter corrects rows 1 to 8, leaves 9 and 10 wrong, and breaks none."""
    finish(Evaluation.objects.submit(publish(run), None))
    base = [item(row, "no" if row <= 10 else "yes") for row in range(1, 13)]
    tuned = [item(row, "yes" if row not in (9, 10) else "no") for row in range(1, 13)]
    for evaluation in run.evaluations.all():
        evaluation.record_result(12, {"exact_match": 0.5}, base if evaluation.subject == "base" else tuned)
    return run


def shown(client: Client, run: TrainingRun, **query: str) -> list[int]:
    answer = client.get(reverse("training-run-samples", args=[run.pk]), query)
    assert answer.status_code == 200
    return [base.row for base, _adapter in answer.context["pairs"]]


def test_answers_are_paired_by_row(client: Client, vera: User, evaluated: TrainingRun) -> None:
    client.force_login(vera)
    assert shown(client, evaluated) == list(range(1, 11))
    assert shown(client, evaluated, page="2") == [11, 12]


def test_changed_and_wrong_answers_are_filtered(client: Client, vera: User, evaluated: TrainingRun) -> None:
    client.force_login(vera)
    assert shown(client, evaluated, samples="changed") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert shown(client, evaluated, samples="wrong") == [9, 10]


@pytest.mark.parametrize("query", [{"samples": "x"}, {"page": "x"}, {"page": "-1"}, {"page": "9" * 30}])
def test_malformed_queries_show_the_first_page(
    client: Client, vera: User, evaluated: TrainingRun, query: dict[str, str]
) -> None:
    client.force_login(vera)
    assert shown(client, evaluated, **query)


def test_model_output_is_escaped(client: Client, vera: User, evaluated: TrainingRun) -> None:
    for evaluation in evaluated.evaluations.all():
        evaluation.record_result(1, {}, [item(1, "<img src=x onerror=alert(1)>")])
    client.force_login(vera)
    page = client.get(reverse("training-run-samples", args=[evaluated.pk])).content
    assert b"<img" not in page
    assert b"&lt;img" in page


def test_unevaluated_run_has_no_answers(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    assert shown(client, run) == []


def test_outsider_gets_404(client: Client, otto: User, evaluated: TrainingRun) -> None:
    client.force_login(otto)
    assert client.get(reverse("training-run-samples", args=[evaluated.pk])).status_code == 404


def test_the_system_message_of_a_row_is_shown(
    client: Client, api: Client, vera: User, evaluated: TrainingRun
) -> None:
    EvaluationItem.objects.filter(row=1).update(system="Answer in one word.")
    client.force_login(vera)
    text = client.get(reverse("training-run-samples", args=[evaluated.pk])).content.decode()
    assert text.count("Answer in one word.") == 1
    rows = api.get(f"/api/v1/runs/{evaluated.pk}/samples").json()["data"]
    assert {row["row"]: row["system"] for row in rows if row["row"] < 3} == {1: "Answer in one word.", 2: ""}
