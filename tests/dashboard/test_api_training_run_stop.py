"""Stopping and resuming runs over the API: what stays, and what a repeated call means."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client

from dashboard.models import (
    ApiToken,
    Job,
    Outbox,
    Project,
    State,
    TrainingRun,
    User,
)
from dashboard.models.stopping import arms_to_stop
from tests.dashboard.conftest import make_checkpoint
from tests.dashboard.refusals import refusal

RUNS = "/api/v1/runs"


@pytest.fixture
def training(run: TrainingRun) -> TrainingRun:
    """A run that a worker has trained for five steps."""
    assert run.job
    run.job.move("claim", attempt=1, worker="w")
    run.job.move("progress")
    run.job.update_progress(step=5)
    return run


def test_it_stops_a_waiting_run_at_once(api: Client, run: TrainingRun) -> None:
    answer = api.post(f"{RUNS}/{run.pk}/cancel")
    assert answer.status_code == 202
    assert answer.json()["state"] == "cancelled"
    assert answer.json() == api.get(f"{RUNS}/{run.pk}").json()


def test_it_asks_a_working_run_to_stop(api: Client, run: TrainingRun) -> None:
    assert run.job
    run.job.move("claim", worker="w")
    run.job.move("progress")
    assert api.post(f"{RUNS}/{run.pk}/cancel").json()["state"] == "cancelling"
    assert api.post(f"{RUNS}/{run.pk}/cancel").status_code == 202


def test_it_cannot_stop_what_has_ended(api: Client, run: TrainingRun) -> None:
    api.post(f"{RUNS}/{run.pk}/cancel")
    assert refusal(api.post(f"{RUNS}/{run.pk}/cancel"), 409)["code"] == "already_ended"


def test_a_repeated_stop_with_its_key_is_answered_again(api: Client, run: TrainingRun) -> None:
    for _time in range(2):
        answer = api.post(f"{RUNS}/{run.pk}/cancel", headers={"Idempotency-Key": "stop"})
        assert answer.status_code == 202
    refusal(api.post(f"{RUNS}/{run.pk}/cancel", headers={"Idempotency-Key": "other"}), 409)


@pytest.mark.parametrize("address", ["runs/{run.pk}", "jobs/{run.job_id}"])
def test_a_repeated_stop_with_its_key_spares_what_somebody_has_resumed_since(
    api: Client, training: TrainingRun, ed: User, address: str
) -> None:
    assert training.job
    make_checkpoint(training.job, step=4)
    path, key = f"/api/v1/{address.format(run=training)}/cancel", {"Idempotency-Key": "stop"}
    body = {"keep": "checkpoint"} if address.startswith("runs") else {}
    assert api.post(path, body, "application/json", headers=key).status_code == 202
    Job.objects.filter(pk=training.job_id).update(keep="checkpoint")
    Job.objects.get(pk=training.job_id).move("stopped")
    TrainingRun.objects.get(pk=training.pk).resume(ed)
    again = api.post(path, body, "application/json", headers=key)
    assert (again.status_code, again.json()["state"]) == (202, "queued")
    assert TrainingRun.objects.get(pk=training.pk).state == State.QUEUED


def stop(api: Client, run: TrainingRun, body: object = None, **headers: str) -> Any:
    text = body if isinstance(body, str) else json.dumps(body)
    return api.post(f"{RUNS}/{run.pk}/cancel", text, content_type="application/json", headers=headers)


def test_a_key_that_comes_with_another_wish_stops_nothing_more(api: Client, training: TrainingRun) -> None:
    key = {"Idempotency-Key": "stop"}
    assert stop(api, training, {"keep": "checkpoint"}, **key).status_code == 202
    assert refusal(stop(api, training, {}, **key), 422)["field"] == "Idempotency-Key"
    assert Job.objects.get(pk=training.job_id).read_stop_request() == "park"


@pytest.mark.parametrize("body", ["", "{}", {"keep": None}])
def test_it_keeps_nothing_where_nothing_is_said(api: Client, training: TrainingRun, body: object) -> None:
    assert stop(api, training, body).status_code == 202
    assert Job.objects.get(pk=training.job_id).read_stop_request() == "cancel"


def test_it_stops_and_keeps_the_best(api: Client, training: TrainingRun) -> None:
    for _time in range(2):
        answer = stop(api, training, {"keep": "adapter"})
        assert (answer.status_code, answer.json()["state"]) == (202, "running")
    assert Job.objects.get(pk=training.job_id).read_stop_request() == "finish"


def test_it_stops_and_keeps_the_checkpoint(api: Client, training: TrainingRun) -> None:
    answer = stop(api, training, {"keep": "checkpoint"})
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")
    assert Job.objects.get(pk=training.job_id).read_stop_request() == "park"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"keep": "best"}, "keep"),
        ({"keep": ""}, "keep"),
        ({"keep": True}, "keep"),
        ({"keep": ["adapter"]}, "keep"),
        ({"kept": "adapter"}, "kept"),
        ([], None),
        ("adapter", None),
        ("{", None),
    ],
)
def test_it_refuses_to_keep_anything_else(
    api: Client, training: TrainingRun, body: object, field: str | None
) -> None:
    problem = refusal(stop(api, training, body), 422)
    assert problem["field"] == field
    assert problem["message"].endswith(".")
    assert Job.objects.get(pk=training.job_id).read_stop_request() == ""


def test_it_keeps_nothing_more_of_what_is_being_discarded(api: Client, training: TrainingRun) -> None:
    stop(api, training)
    problem = refusal(stop(api, training, {"keep": "checkpoint"}), 409)
    assert problem["code"] == "already_stopping"


def test_a_waiting_run_that_has_learned_nothing_keeps_nothing(api: Client, run: TrainingRun) -> None:
    answer = stop(api, run, {"keep": "checkpoint"})
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    assert answer.json()["resumable_from"] is None
    (event, *_before) = api.get(f"/api/v1/jobs/{run.job_id}/events").json()["data"]
    assert event["message"].endswith("stopped it while it waited: it had learned nothing yet")


@pytest.fixture
def other(training: TrainingRun) -> TrainingRun:
    """A run that trains in the same job."""
    other = TrainingRun.objects.get(pk=training.pk)
    other.pk, other._state.adding, other.name = None, True, "The other"
    other.save()
    return other


@pytest.mark.parametrize(("body", "wish"), [({}, "cancel"), ({"keep": "adapter"}, "finish")])
def test_it_stops_one_run_of_two_alone(
    api: Client, training: TrainingRun, other: TrainingRun, body: object, wish: str
) -> None:
    for _time in range(2):
        answer = stop(api, training, body)
        assert (answer.status_code, answer.json()["state"]) == (202, "running")
    job = Job.objects.get(pk=training.job_id)
    assert (job.read_stop_request(), arms_to_stop(job)) == ("", {0: wish})
    assert api.get(f"{RUNS}/{other.pk}").json()["state"] == "running"


def test_it_refuses_to_keep_a_checkpoint_that_others_have_in_common(
    api: Client, training: TrainingRun, other: TrainingRun
) -> None:
    problem = refusal(stop(api, training, {"keep": "checkpoint"}), 409)
    assert (problem["code"], problem["field"]) == ("trains_with_others", "keep")
    job = Job.objects.get(pk=training.job_id)
    assert (job.read_stop_request(), arms_to_stop(job)) == ("", {})


@pytest.mark.parametrize("body", [{}, {"keep": "adapter"}, {"keep": "checkpoint"}])
def test_a_run_that_has_ended_is_refused_and_never_stops_the_one_beside_it(
    api: Client, training: TrainingRun, other: TrainingRun, body: object
) -> None:
    training.end("succeeded", step=5)
    problem = refusal(stop(api, training, body), 409)
    assert (problem["code"], problem["message"]) == ("already_ended", "It has already ended: Finished.")
    job = Job.objects.get(pk=training.job_id)
    assert (job.read_stop_request(), arms_to_stop(job)) == ("", {})


def test_a_run_of_a_waiting_job_ends_at_once_and_once(api: Client, run: TrainingRun) -> None:
    beside = TrainingRun.objects.get(pk=run.pk)
    beside.pk, beside._state.adding = None, True
    beside.save()
    key = {"Idempotency-Key": "stop"}
    for _time in range(2):
        answer = stop(api, run, {}, **key)
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    refusal(stop(api, run, {}), 409)
    assert api.get(f"{RUNS}/{beside.pk}").json()["state"] == "queued"


def test_the_whole_job_can_still_be_stopped(api: Client, training: TrainingRun, other: TrainingRun) -> None:
    assert api.post(f"/api/v1/jobs/{training.job_id}/cancel").status_code == 202
    assert Job.objects.get(pk=training.job_id).read_stop_request() == "cancel"


def test_a_viewer_stops_no_run_of_two(
    training: TrainingRun, other: TrainingRun, project: Project, vera: User
) -> None:
    api = Client(headers={"Authorization": f"Bearer {ApiToken.issue(project, vera, 'x')[1]}"})
    refusal(api.post(f"{RUNS}/{training.pk}/cancel"), 403)
    assert arms_to_stop(Job.objects.get(pk=training.job_id)) == {}


def parked(run: TrainingRun) -> TrainingRun:
    """Stopped with its checkpoint of step 4 kept."""
    assert run.job
    make_checkpoint(run.job, step=4)
    run.job.request_cancel(keep="checkpoint")
    run.job.move("stopped")
    return run


def test_it_resumes_where_the_checkpoint_left_it(api: Client, training: TrainingRun) -> None:
    parked(training)
    address = f"{RUNS}/{training.pk}"
    assert api.get(address).json()["resumable_from"] == 4
    answer = api.post(f"{address}/resume")
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    assert answer.json() == api.get(address).json()
    assert answer.json()["resumable_from"] is None


def test_a_repeated_resume_with_its_key_is_answered_again(api: Client, training: TrainingRun) -> None:
    parked(training)
    address = f"{RUNS}/{training.pk}/resume"
    for _time in range(2):
        assert api.post(address, headers={"Idempotency-Key": "go on"}).status_code == 202
    refusal(api.post(address, headers={"Idempotency-Key": "other"}), 409)
    assert Outbox.objects.filter(job=training.job_id).count() == 2


def test_a_repeated_resume_with_its_key_lets_what_was_stopped_since_rest(
    api: Client, training: TrainingRun, ed: User
) -> None:
    parked(training)
    address, key = f"{RUNS}/{training.pk}/resume", {"Idempotency-Key": "go on"}
    assert api.post(address, headers=key).status_code == 202
    assert Job.objects.get(pk=training.job_id).request_cancel(ed, keep="checkpoint")
    again = api.post(address, headers=key)
    assert (again.status_code, again.json()["state"]) == (202, "cancelled")


def test_a_call_that_dies_half_way_has_neither_acted_nor_used_its_key(
    api: Client, training: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.raise_request_exception = False
    cancel = Job.request_cancel

    def act_and_die(job: Job, by: User | None = None, keep: str = "") -> bool:
        cancel(job, by, keep)
        raise RuntimeError("the process dies")

    with monkeypatch.context() as dying:
        dying.setattr(Job, "request_cancel", act_and_die)
        assert stop(api, training, **{"Idempotency-Key": "stop"}).status_code == 500
    assert Job.objects.get(pk=training.job_id).read_stop_request() == ""
    assert stop(api, training, **{"Idempotency-Key": "stop"}).json()["state"] == "cancelling"


def test_a_refused_resume_is_refused_again_with_its_key(api: Client, run: TrainingRun) -> None:
    for _time in range(2):
        answer = api.post(f"{RUNS}/{run.pk}/resume", headers={"Idempotency-Key": "go on"})
        assert refusal(answer, 409)["code"] == "not_resumable"


def test_it_says_why_it_cannot_resume(api: Client, training: TrainingRun) -> None:
    address = f"{RUNS}/{training.pk}/resume"
    assert "works already" in refusal(api.post(address), 409)["message"]
    assert training.job
    training.job.request_cancel()
    training.job.move("stopped")
    assert "no checkpoint" in refusal(api.post(address), 409)["message"]


def test_a_viewer_resumes_nothing(training: TrainingRun, project: Project, vera: User) -> None:
    parked(training)
    api = Client(headers={"Authorization": f"Bearer {ApiToken.issue(project, vera, 'x')[1]}"})
    refusal(api.post(f"{RUNS}/{training.pk}/resume"), 403)
    assert TrainingRun.objects.get().state == State.CANCELLED
