"""The queue and the workers over the API."""

from __future__ import annotations

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from dashboard.models import ApiToken, Job, Project, TrainingRun, User, WorkerNode
from tests.conftest import make_dataset

JOBS = "/api/v1/jobs"


@pytest.fixture
def api(token: str) -> Client:
    return Client(headers={"Authorization": f"Bearer {token}"})


def test_it_shows_a_job_with_its_place_and_what_it_is_for(api: Client, run: TrainingRun) -> None:
    job = api.get(f"{JOBS}/{run.job_id}").json()
    assert (job["kind"], job["state"], job["queue"], job["position"]) == ("train", "queued", "gpu", 1)
    assert (job["run"], job["dataset"], job["base_model"]) == (run.pk, None, None)
    assert job["created_at"].endswith("Z")
    assert job["error"] is None


def test_it_lists_only_the_projects_jobs(api: Client, run: TrainingRun, other_project: Project) -> None:
    make_dataset(other_project, "Theirs", ready=False)
    waiting = api.get(f"{JOBS}?state=queued").json()["data"]
    assert [one["id"] for one in waiting] == [run.job_id]
    assert {one["kind"] for one in api.get(JOBS).json()["data"]} == {"train", "import", "inspect"}


def test_it_refuses_a_state_that_no_job_has(api: Client) -> None:
    answer = api.get(f"{JOBS}?state=lost")
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "state")


@pytest.mark.parametrize("rows", [10, 60])
def test_a_list_asks_the_database_a_fixed_number_of_times(
    api: Client, project: Project, rows: int, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(rows):
        make_dataset(project, f"Set {number}", ready=False)
    api.get(JOBS)
    with django_assert_num_queries(6):
        assert len(api.get(f"{JOBS}?limit=200").json()["data"]) == rows


def test_it_stops_a_job_once(api: Client, run: TrainingRun) -> None:
    first, second = (api.post(f"{JOBS}/{run.job_id}/cancel") for _time in range(2))
    assert (first.status_code, first.json()["state"]) == (202, "cancelled")
    assert (second.status_code, second.json()["error"]["code"]) == (409, "already_ended")


def test_it_tells_a_jobs_history(api: Client, run: TrainingRun) -> None:
    events = api.get(f"{JOBS}/{run.job_id}/events").json()["data"]
    assert [(one["event"], one["state"]) for one in events] == [("submit", "queued")]


def test_it_hides_a_foreign_job(run: TrainingRun, other_project: Project, otto: User) -> None:
    api = Client(headers={"Authorization": f"Bearer {ApiToken.issue(other_project, otto, 'x')[1]}"})
    assert api.get(f"{JOBS}/{run.job_id}").status_code == 404
    assert api.get(f"{JOBS}/{run.job_id}/events").status_code == 404
    assert api.post(f"{JOBS}/{run.job_id}/cancel").status_code == 404
    assert Job.objects.get(pk=run.job_id).state == "queued"


def test_a_viewer_stops_nothing(run: TrainingRun, project: Project, vera: User) -> None:
    api = Client(headers={"Authorization": f"Bearer {ApiToken.issue(project, vera, 'x')[1]}"})
    assert api.post(f"{JOBS}/{run.job_id}/cancel").status_code == 403


def test_it_lists_the_workers(api: Client) -> None:
    WorkerNode.objects.beat("gpu@host", queue="gpu", host="host", pid=7)
    worker = api.get("/api/v1/workers").json()["data"][0]
    assert (worker["name"], worker["alive"], worker["device"]) == ("gpu@host", True, None)
