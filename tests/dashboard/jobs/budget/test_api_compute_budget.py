"""The compute budget over the API, and the refusal of work beyond it."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from dashboard.models import BaseModel, ComputeBudget, Dataset, Job, Project, TrainingRun, User
from dashboard.models.jobs.compute_use import HOUR, Month
from tests.conftest import finish
from tests.dashboard.conftest import api_client, make_checkpoint
from tests.dashboard.durations import expect, held
from tests.dashboard.studies.factories import make_study

URL = "/api/v1/compute-budget"


def put(client: Client, body: dict[str, Any]) -> Any:
    return client.patch(URL, body, content_type="application/json")


def run_body(dataset: Dataset, base_model: BaseModel) -> dict[str, Any]:
    return {
        "dataset": dataset.pk,
        "base_model": base_model.pk,
        "target_module_config": "efficient",
        "hyperparameters": {"r": 4, "max_steps": 10, "max_length": 64},
    }


def test_usage_and_limit(project: Project, vera: User, run: TrainingRun) -> None:
    assert run.job is not None
    held(finish(run.job), Month.current().begin, 1800)
    ComputeBudget.objects.change(project, 2, None)
    assert api_client(project, vera).get(URL).json() == {
        "month": Month.current().begin.strftime("%Y-%m"),
        "hours_per_month": 2.0,
        "used_hours": pytest.approx(0.5),
        "promised_hours": 0.0,
        "left_hours": pytest.approx(1.5),
    }


def test_a_manager_sets_and_removes_the_limit(project: Project, mara: User) -> None:
    assert put(api_client(project, mara), {"hours_per_month": 12.5}).json()["hours_per_month"] == 12.5
    answer = put(api_client(project, mara), {"hours_per_month": None}).json()
    assert (answer["hours_per_month"], answer["left_hours"]) == (None, None)


@pytest.mark.parametrize("number", ["-1", '"5"', "NaN", "Infinity", "1e400", "1e7"])
def test_an_invalid_limit_is_refused(project: Project, mara: User, number: str) -> None:
    body = f'{{"hours_per_month": {number}}}'
    answer = api_client(project, mara).patch(URL, body, content_type="application/json")
    assert answer.status_code == 422
    assert ComputeBudget.objects.hours_of(project) is None


def test_a_run_beyond_the_budget_is_refused(
    project: Project, ed: User, mara: User, dataset: Dataset, base_model: BaseModel
) -> None:
    ComputeBudget.objects.change(project, 0, mara)
    answer = api_client(project, ed).post(
        "/api/v1/runs", run_body(dataset, base_model), content_type="application/json"
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (409, "over_budget", None)
    assert not TrainingRun.objects.exists()


def test_a_refused_call_works_after_the_budget_is_raised(
    project: Project, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client, body = api_client(project, ed), run_body(dataset, base_model)
    headers = {"Idempotency-Key": "one"}
    for hours, status in ((0, 409), (10, 202), (0, 202)):
        ComputeBudget.objects.change(project, hours, None)
        answer = client.post("/api/v1/runs", body, content_type="application/json", headers=headers)
        assert answer.status_code == status
    assert TrainingRun.objects.count() == 1


def test_a_forecast_needs_no_budget(
    project: Project, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    ComputeBudget.objects.change(project, 0, None)
    answer = api_client(project, ed).post(
        "/api/v1/forecast", run_body(dataset, base_model), content_type="application/json"
    )
    assert answer.status_code == 200


def test_a_study_beyond_the_budget_is_refused(
    project: Project, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    ComputeBudget.objects.change(project, 0, None)
    learn = {"r": 4, "max_steps": 10, "max_length": 64}
    arms = [{"target_module_config": slug, "hyperparameters": learn} for slug in ("efficient", "quality")]
    body = {"dataset": dataset.pk, "base_model": base_model.pk, "arms": arms}
    answer = api_client(project, ed).post("/api/v1/studies", body, content_type="application/json")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "over_budget")
    assert not Job.objects.filter(kind="train").exists()


def test_seeds_beyond_the_budget_are_refused(
    project: Project, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1])
    ComputeBudget.objects.change(project, 1.5 * study.whole_forecast / HOUR, None)
    answer = api_client(project, ed).post(
        f"/api/v1/studies/{study.pk}/seeds", {"seeds": [2]}, content_type="application/json"
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "over_budget")


def test_resuming_beyond_the_budget_is_refused(project: Project, ed: User, run: TrainingRun) -> None:
    assert run.job is not None
    expect(run, 600)
    run.job.move("claim", attempt=1)
    run.job.move("progress")
    make_checkpoint(run.job, step=4)
    run.job.request_cancel(keep="checkpoint")
    run.job.move("stopped")
    ComputeBudget.objects.change(project, 0, None)
    answer = api_client(project, ed).post(f"/api/v1/runs/{run.pk}/resume")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "over_budget")
    assert TrainingRun.objects.get().state == "cancelled"
