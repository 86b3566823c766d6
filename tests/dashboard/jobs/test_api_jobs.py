"""Jobs and workers over the API."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from dashboard.models import ApiToken, Project, Role, TrainingRun, User, WorkerNode
from tests.conftest import make_dataset
from tests.dashboard.conftest import api_client

JOBS = "/api/v1/jobs"


def test_a_waiting_job(api: Client, run: TrainingRun) -> None:
    job = api.get(f"{JOBS}/{run.job_id}").json()
    assert (job["kind"], job["state"], job["queue"], job["position"]) == ("train", "queued", "gpu", 1)
    assert (job["run"], job["dataset"], job["base_model"]) == (run.pk, None, None)
    assert (job["priority"], job["starts_at"]) == ("normal", None)
    assert job["created_at"].endswith("Z")
    assert job["error"] is None


def test_the_list_holds_only_jobs_of_the_project(
    api: Client, run: TrainingRun, other_project: Project
) -> None:
    make_dataset(other_project, "Theirs", ready=False)
    waiting = api.get(f"{JOBS}?state=queued").json()["data"]
    assert [one["id"] for one in waiting] == [run.job_id]
    assert {one["kind"] for one in api.get(JOBS).json()["data"]} == {"train", "import", "inspect"}


def test_an_unknown_state_is_refused(api: Client) -> None:
    answer = api.get(f"{JOBS}?state=lost")
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "state")


@pytest.mark.parametrize("rows", [10, 60])
def test_queries_of_the_list_are_constant(
    api: Client, project: Project, rows: int, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(rows):
        make_dataset(project, f"Set {number}", ready=False)
    api.get(JOBS)
    with django_assert_num_queries(12):
        assert len(api.get(f"{JOBS}?limit=200").json()["data"]) == rows


def test_a_stopped_job_cannot_be_stopped_again(api: Client, run: TrainingRun) -> None:
    first, second = (api.post(f"{JOBS}/{run.job_id}/cancel") for _time in range(2))
    assert (first.status_code, first.json()["state"]) == (202, "cancelled")
    assert (second.status_code, second.json()["error"]["code"]) == (409, "already_ended")


def test_a_stopping_job_has_no_time_left(api: Client, run: TrainingRun) -> None:
    assert run.job
    run.job.move("claim", attempt=1)
    run.job.move("progress", phase="training", step=5, total_steps=10, eta_seconds=3600.0)
    assert api.get(f"{JOBS}/{run.job_id}").json()["eta_seconds"] == 3600.0
    run.job.move("cancel")
    assert api.get(f"{JOBS}/{run.job_id}").json()["eta_seconds"] is None


def test_the_events_of_a_job(api: Client, run: TrainingRun) -> None:
    events = api.get(f"{JOBS}/{run.job_id}/events").json()["data"]
    assert [(one["event"], one["state"]) for one in events] == [("submit", "queued")]


def test_the_list_of_workers(api: Client) -> None:
    WorkerNode.objects.register("gpu@host", queue="gpu", host="host", pid=7)
    worker = api.get("/api/v1/workers").json()["data"][0]
    assert (worker["name"], worker["alive"], worker["device"]) == ("gpu@host", True, None)


def test_a_waiting_job_has_an_estimated_start(api: Client, run: TrainingRun) -> None:
    WorkerNode.objects.register("gpu@host", queue="gpu", host="host", pid=7)
    job = api.get(f"{JOBS}/{run.job_id}").json()
    listed = api.get(f"{JOBS}?state=queued").json()["data"][0]
    for answer in (job, listed):
        assert timezone.now() - datetime.fromisoformat(answer["starts_at"]) < timedelta(minutes=1)


def change(client: Client, pk: int | None, **body: object) -> tuple[int, dict[str, Any]]:
    answer = client.patch(f"{JOBS}/{pk}", body, content_type="application/json")
    return answer.status_code, answer.json()


def test_a_manager_changes_the_priority(project: Project, mara: User, run: TrainingRun) -> None:
    status, job = change(api_client(project, mara), run.job_id, priority="high")
    assert (status, job["priority"], job["position"]) == (200, "high", 1)
    assert change(api_client(project, mara), run.job_id, priority="best")[0] == 422


def test_the_priority_of_a_started_job_cannot_be_changed(
    project: Project, mara: User, run: TrainingRun
) -> None:
    assert run.job
    run.job.move("claim", attempt=1)
    status, body = change(api_client(project, mara), run.job_id, priority="low")
    assert (status, body["error"]["code"]) == (409, "not_waiting")


def post(client: Client, address: str, **body: object) -> tuple[int, dict[str, Any]]:
    answer = client.post(address, body, content_type="application/json")
    return answer.status_code, answer.json()


def test_the_manager_of_the_only_project_pauses_and_resumes_a_worker(project: Project, mara: User) -> None:
    WorkerNode.objects.register("gpu@host", queue="gpu", host="host", pid=7)
    pk = WorkerNode.objects.get().pk
    api = api_client(project, mara)
    assert post(api, f"/api/v1/workers/{pk}/pause")[1]["paused"] is True
    assert post(api, f"/api/v1/workers/{pk}/resume")[1]["paused"] is False


def test_a_read_only_token_cannot_pause_a_worker(project: Project) -> None:
    WorkerNode.objects.register("gpu@host", queue="gpu", host="host", pid=7)
    root = User.objects.create_superuser("root@example.org")
    project.admit(root, Role.MANAGER)
    api = api_client(project, root, scope=ApiToken.Scope.READ)
    assert post(api, f"/api/v1/workers/{WorkerNode.objects.get().pk}/pause")[0] == 403
