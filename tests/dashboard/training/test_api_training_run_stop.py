"""Stop and resume in the API: kept progress, repeated calls, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client

from dashboard.models import Job, Outbox, State, TrainingRun, User
from dashboard.models.jobs import stop as jobs_stop
from tests.dashboard.conftest import make_checkpoint, start_training
from tests.dashboard.refusals import refusal

RUNS = "/api/v1/runs"


@pytest.fixture
def training(run: TrainingRun) -> TrainingRun:
    """A run after five of ten steps."""
    start_training(run)
    return run


def test_it_stops_a_waiting_run_at_once(api: Client, run: TrainingRun) -> None:
    answer = api.post(f"{RUNS}/{run.pk}/cancel")
    assert answer.status_code == 202
    assert answer.json()["state"] == "cancelled"
    assert answer.json() == api.get(f"{RUNS}/{run.pk}").json()


def test_an_ended_run_cannot_be_stopped(api: Client, run: TrainingRun) -> None:
    api.post(f"{RUNS}/{run.pk}/cancel")
    assert refusal(api.post(f"{RUNS}/{run.pk}/cancel"), 409)["code"] == "already_ended"


def test_a_repeated_stop_with_its_key_succeeds(api: Client, run: TrainingRun) -> None:
    for _time in range(2):
        answer = api.post(f"{RUNS}/{run.pk}/cancel", headers={"Idempotency-Key": "stop"})
        assert answer.status_code == 202
    refusal(api.post(f"{RUNS}/{run.pk}/cancel", headers={"Idempotency-Key": "other"}), 409)


@pytest.mark.parametrize("address", ["runs/{run.pk}", "jobs/{run.job_id}"])
def test_a_repeated_key_does_not_stop_a_resumed_job(
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


def test_a_key_with_another_body_is_refused(api: Client, training: TrainingRun) -> None:
    key = {"Idempotency-Key": "stop"}
    assert stop(api, training, {"keep": "checkpoint"}, **key).status_code == 202
    assert refusal(stop(api, training, {}, **key), 422)["field"] == "Idempotency-Key"
    assert Job.objects.get(pk=training.job_id).read_stop_request() == "park"


@pytest.mark.parametrize("body", ["", "{}", {"keep": None}])
def test_without_keep_nothing_is_kept(api: Client, training: TrainingRun, body: object) -> None:
    assert stop(api, training, body).status_code == 202
    assert Job.objects.get(pk=training.job_id).read_stop_request() == "cancel"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"keep": "best"}, "keep"),
        ({"keep": ["adapter"]}, "keep"),
        ({"kept": "adapter"}, "kept"),
        ([], None),
        ("{", None),
    ],
)
def test_it_refuses_other_values_of_keep(
    api: Client, training: TrainingRun, body: object, field: str | None
) -> None:
    problem = refusal(stop(api, training, body), 422)
    assert problem["field"] == field
    assert problem["message"].endswith(".")
    assert Job.objects.get(pk=training.job_id).read_stop_request() == ""


def test_a_discarded_run_cannot_keep_its_checkpoint(api: Client, training: TrainingRun) -> None:
    stop(api, training)
    problem = refusal(stop(api, training, {"keep": "checkpoint"}), 409)
    assert problem["code"] == "already_stopping"


def test_a_waiting_run_without_progress_keeps_nothing(api: Client, run: TrainingRun) -> None:
    answer = stop(api, run, {"keep": "checkpoint"})
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    assert answer.json()["resumable_from"] is None
    (event, *_before) = api.get(f"/api/v1/jobs/{run.job_id}/events").json()["data"]
    assert event["message"].endswith("stopped it while it waited: there was no progress yet")


@pytest.mark.parametrize(
    ("keep", "request_"), [(None, "cancel"), ("adapter", "finish"), ("checkpoint", "park")]
)
def test_it_stops_the_job_with_all_its_runs(
    api: Client, training: TrainingRun, run_of_same_job: TrainingRun, keep: str | None, request_: str
) -> None:
    assert stop(api, training, {"keep": keep}).status_code == 202
    assert Job.objects.get(pk=training.job_id).read_stop_request() == request_
    states = {api.get(f"{RUNS}/{run.pk}").json()["state"] for run in (training, run_of_same_job)}
    assert states == {"running" if keep == "adapter" else "cancelling"}


def test_an_ended_run_does_not_stop_the_runs_that_train_with_it(
    api: Client, training: TrainingRun, run_of_same_job: TrainingRun
) -> None:
    training.end("succeeded", step=5)
    assert refusal(stop(api, training, {}), 409)["code"] == "already_ended"
    assert Job.objects.get(pk=training.job_id).read_stop_request() == ""


def parked(run: TrainingRun) -> TrainingRun:
    """Return the run, stopped with its checkpoint of step 4."""
    assert run.job
    make_checkpoint(run.job, step=4)
    run.job.request_cancel(keep="checkpoint")
    run.job.move("stopped")
    return run


def test_it_resumes_from_the_checkpoint(api: Client, training: TrainingRun) -> None:
    parked(training)
    address = f"{RUNS}/{training.pk}"
    assert api.get(address).json()["resumable_from"] == 4
    answer = api.post(f"{address}/resume")
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    assert answer.json() == api.get(address).json()
    assert answer.json()["resumable_from"] is None


def test_a_repeated_resume_with_its_key_succeeds(api: Client, training: TrainingRun) -> None:
    parked(training)
    address = f"{RUNS}/{training.pk}/resume"
    for _time in range(2):
        assert api.post(address, headers={"Idempotency-Key": "go on"}).status_code == 202
    refusal(api.post(address, headers={"Idempotency-Key": "other"}), 409)
    assert Outbox.objects.filter(job=training.job_id).count() == 2


def test_a_repeated_key_does_not_resume_a_stopped_job(api: Client, training: TrainingRun, ed: User) -> None:
    parked(training)
    address, key = f"{RUNS}/{training.pk}/resume", {"Idempotency-Key": "go on"}
    assert api.post(address, headers=key).status_code == 202
    assert Job.objects.get(pk=training.job_id).request_cancel(ed, keep="checkpoint")
    again = api.post(address, headers=key)
    assert (again.status_code, again.json()["state"]) == (202, "cancelled")


def test_a_crashed_call_changes_nothing_and_frees_its_key(
    api: Client, training: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.raise_request_exception = False
    stop_job = jobs_stop.stop_job

    def stop_and_die(job: Job, *args: Any, **options: Any) -> bool:
        stop_job(job, *args, **options)
        raise RuntimeError("the process dies")

    with monkeypatch.context() as dying:
        dying.setattr(jobs_stop, "stop_job", stop_and_die)
        assert stop(api, training, **{"Idempotency-Key": "stop"}).status_code == 500
    assert Job.objects.get(pk=training.job_id).read_stop_request() == ""
    assert stop(api, training, **{"Idempotency-Key": "stop"}).json()["state"] == "cancelling"


def test_a_refused_resume_is_refused_again_with_its_key(api: Client, run: TrainingRun) -> None:
    for _time in range(2):
        answer = api.post(f"{RUNS}/{run.pk}/resume", headers={"Idempotency-Key": "go on"})
        assert refusal(answer, 409)["code"] == "not_resumable"


def test_a_refused_resume_states_the_reason(api: Client, training: TrainingRun) -> None:
    address = f"{RUNS}/{training.pk}/resume"
    assert refusal(api.post(address), 409)["code"] == "not_resumable"
    assert training.job
    training.job.request_cancel()
    training.job.move("stopped")
    assert "no checkpoint" in refusal(api.post(address), 409)["message"]
