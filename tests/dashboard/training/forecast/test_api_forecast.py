"""The forecast of a run in the API, without starting it."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.utils.dateparse import parse_datetime
from pytest_django import DjangoAssertNumQueries

from dashboard.models import BaseModel, Dataset, Job, TrainingRun, WorkerNode

URL = "/api/v1/forecast"
KEYS = {"trainable_parameters", "adapter_bytes", "peak_memory_bytes", "seconds", "rows_cut", "starts_at"}


@pytest.fixture
def body(dataset: Dataset, base_model: BaseModel) -> dict[str, Any]:
    return {
        "dataset": dataset.pk,
        "base_model": base_model.pk,
        "target_module_config": "efficient",
        "hyperparameters": {"r": 4, "max_steps": 10, "max_length": 64},
    }


def post(api: Client, body: Any, url: str = URL) -> Any:
    return api.post(url, body, content_type="application/json")


def test_it_returns_the_forecast_and_starts_nothing(api: Client, body: dict[str, Any]) -> None:
    jobs = Job.objects.count()
    answer = post(api, body)
    assert answer.status_code == 200
    found = answer.json()
    assert set(found) == KEYS
    assert found["trainable_parameters"] == 2 * 4 * (32 + 32)
    for span in (found["peak_memory_bytes"], found["seconds"]):
        assert 0 < span["low"] < span["expected"] < span["high"]
    assert (Job.objects.count(), TrainingRun.objects.count()) == (jobs, 0)


def test_a_run_of_the_same_body_has_the_same_forecast(api: Client, body: dict[str, Any]) -> None:
    asked, run = post(api, body).json(), post(api, body, "/api/v1/runs").json()
    assert run["forecast"] == asked


def test_missing_values_of_old_runs_are_null(api: Client, run: TrainingRun) -> None:
    TrainingRun.objects.update(forecast={"trainable_parameters": 512, "adapter_bytes": 2048})
    found = api.get(f"/api/v1/runs/{run.pk}").json()["forecast"]
    assert (found["adapter_bytes"], found["seconds"], found["rows_cut"]) == (2048, None, None)


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"dataset": 10**6}, 404, "dataset"),
        ({"hyperparameters": {"r": 0}}, 422, "hyperparameters.r"),
        ({"hyperparameters": {"max_length": 100_000}}, 422, "hyperparameters.max_length"),
    ],
)
def test_it_refuses_like_a_launch(
    api: Client, body: dict[str, Any], changes: dict[str, Any], status: int, field: str
) -> None:
    answers = [post(api, {**body, **changes}, url) for url in (URL, "/api/v1/runs")]
    assert [answer.status_code for answer in answers] == [status, status]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["error"]["field"] == field


def test_it_returns_the_expected_start(api: Client, body: dict[str, Any]) -> None:
    assert post(api, body).json()["starts_at"] is None
    WorkerNode.objects.create(name="gpu0@here", queue="gpu", host="here", pid=1, device="CPU, 2 cores")
    starts = parse_datetime(post(api, body).json()["starts_at"])
    assert starts is not None
    assert starts.tzinfo is not None


def test_it_needs_at_most_20_queries(
    api: Client, body: dict[str, Any], django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_max_num_queries(20):
        post(api, body)
