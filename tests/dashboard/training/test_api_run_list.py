"""Lists of runs and adapters in the API: filters, order, tags and notes."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from dashboard.models import Adapter, BaseModel, Dataset, Project, TrainingRun, User
from tests.conftest import make_run
from tests.dashboard.conftest import api_client, evaluate, publish


@pytest.fixture
def scored(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> list[TrainingRun]:
    """Three runs: with exact matches of 0.4 and 0.8, and one that waits."""
    runs = [make_run(project, dataset, base_model, by=ed, name=name) for name in ("A", "B", "C")]
    for run, score in zip(runs, (0.4, 0.8), strict=False):
        evaluate(publish(run), 0.1, score)
    return runs


def names(api: Client, query: str, path: str = "runs") -> list[str]:
    answer = api.get(f"/api/v1/{path}?{query}")
    assert answer.status_code == 200, answer.json()
    return [row["name"] for row in answer.json()["data"]]


def test_it_sorts_and_filters_like_the_page(api: Client, scored: list[TrainingRun]) -> None:
    assert names(api, "") == ["C", "B", "A"]
    assert names(api, "sort=-exact_match") == ["B", "A", "C"]
    assert names(api, "metric=exact_match&max=0.5") == ["A"]
    assert names(api, "state=active") == ["C"]
    assert names(api, "sort=exact_match", "adapters") == ["A", "B"]
    Adapter.objects.get(run=scored[0]).set_stage("approved")
    assert names(api, "stage=approved", "adapters") == ["A"]


def test_a_sorted_list_is_paged(api: Client, scored: list[TrainingRun]) -> None:
    first = api.get("/api/v1/runs?sort=-exact_match&limit=2").json()
    assert [row["name"] for row in first["data"]] == ["B", "A"]
    assert names(api, f"sort=-exact_match&limit=2&cursor={first['next']}") == ["C"]


def test_scores_are_listed(api: Client, scored: list[TrainingRun]) -> None:
    row = api.get(f"/api/v1/runs/{scored[1].pk}").json()
    assert row["scores"]["exact_match"] == {"base": 0.1, "adapter": 0.8}
    assert (row["tags"], row["note"]) == ([], "")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("sort=spec", "sort"),
        ("sort=--name", "sort"),
        ("state=nonsense", "state"),
        ("metric=x", "metric"),
        ("min=1", "metric"),
        ("dataset=99", "dataset"),
        ("dataset=x", "dataset"),
        ("tag=%00", "tag"),
        ("columns=name", "columns"),
        ("stage=draft", "stage"),
    ],
)
def test_wrong_values_are_refused(api: Client, run: TrainingRun, query: str, field: str) -> None:
    answer = api.get(f"/api/v1/runs?{query}")
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


def change(client: Client, run: TrainingRun, **values: Any) -> Any:
    return client.patch(f"/api/v1/runs/{run.pk}", values, content_type="application/json")


def test_tags_and_note_are_changed(api: Client, run: TrainingRun) -> None:
    assert change(api, run, tags=["baseline", " for  Ann "], note="Keep it.").json()["note"] == "Keep it."
    answer = change(api, run, tags=["baseline"]).json()
    assert (answer["tags"], answer["note"]) == (["baseline"], "Keep it.")
    assert names(api, "tag=baseline") == ["Triage"]


@pytest.mark.parametrize("values", [{"tags": ["x" * 41]}, {"tags": "x"}, {"note": "x" * 2001}, {"name": "x"}])
def test_wrong_tags_and_notes_are_refused(api: Client, run: TrainingRun, values: dict[str, Any]) -> None:
    assert change(api, run, **values).status_code == 422
    assert not run.tags.exists()


def test_a_viewer_changes_nothing(project: Project, vera: User, run: TrainingRun) -> None:
    assert change(api_client(project, vera), run, note="x").status_code == 403
