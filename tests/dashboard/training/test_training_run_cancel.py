"""The page that stops a run and asks what to keep."""

from __future__ import annotations

import re

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Job, State, TrainingRun, User
from tests.conftest import finish
from tests.dashboard.conftest import make_checkpoint, start_training


@pytest.fixture
def training(run: TrainingRun) -> Job:
    return start_training(run)


def stop(client: Client, user: User, run: TrainingRun, **values: str) -> int:
    client.force_login(user)
    return client.post(reverse("training-run-cancel", args=[run.pk]), values).status_code


def choices(page: str) -> list[str]:
    """Return the values of `keep` that the form offers."""
    return re.findall(r'name="keep" value="(\w*)"', page)


def question(client: Client, user: User, run: TrainingRun) -> str:
    client.force_login(user)
    answer = client.get(reverse("training-run-cancel", args=[run.pk]))
    assert answer.status_code == 200
    return answer.content.decode()


def test_it_requests_a_stop(client: Client, ed: User, run: TrainingRun, training: Job) -> None:
    assert stop(client, ed, run, keep="checkpoint") == 302
    assert training.read_stop_request() == "park"


def test_an_ended_run_stays_as_it_is(client: Client, ed: User, run: TrainingRun) -> None:
    assert run.job is not None
    finish(run.job, State.FAILED)
    assert stop(client, ed, run) == 302
    assert TrainingRun.objects.get().state == State.FAILED
    assert "It has already ended: Failed." in client.get(run.get_absolute_url()).content.decode()


def test_a_second_stop_cannot_keep_more(client: Client, ed: User, run: TrainingRun, training: Job) -> None:
    stop(client, ed, run)
    stop(client, ed, run, keep="checkpoint")
    page = client.get(run.get_absolute_url()).content.decode()
    assert "keeps less than you asked for" in page


def test_the_page_offers_what_to_keep(client: Client, ed: User, run: TrainingRun, training: Job) -> None:
    page = question(client, ed, run)
    assert choices(page) == ["adapter", "checkpoint", ""]
    assert training.read_stop_request() == ""


def test_a_waiting_run_without_progress_has_nothing_to_keep(
    client: Client, ed: User, run: TrainingRun
) -> None:
    page = question(client, ed, run)
    assert choices(page) == [""]


def seen_waiting(client: Client, user: User, run: TrainingRun) -> dict[str, str]:
    """Return the fields of the form as shown while the run waits."""
    assert '<input type="hidden" name="seen" value="waiting">' in question(client, user, run)
    return {"keep": "", "seen": "waiting"}


def test_a_waiting_run_leaves_the_queue(client: Client, ed: User, run: TrainingRun) -> None:
    assert stop(client, ed, run, **seen_waiting(client, ed, run)) == 302
    assert TrainingRun.objects.get().state == State.CANCELLED


def test_a_run_that_has_started_is_confirmed_again(client: Client, ed: User, run: TrainingRun) -> None:
    sent = seen_waiting(client, ed, run)
    job = Job.objects.get(pk=run.job_id)
    job.move("claim", attempt=1)
    job.move("progress")
    answer = client.post(reverse("training-run-cancel", args=[run.pk]), sent)
    page = answer.content.decode()
    assert answer.status_code == 422
    assert choices(page) == ["adapter", "checkpoint", ""]
    assert 'name="seen"' not in page
    assert Job.objects.get(pk=job.pk).read_stop_request() == ""


def test_a_waiting_run_with_a_checkpoint_has_something_to_keep(
    client: Client, ed: User, run: TrainingRun, training: Job
) -> None:
    make_checkpoint(training, step=4)
    training.interrupt("The worker died.")
    assert "checkpoint" in choices(question(client, ed, run))


def test_keeping_the_adapter_is_offered_once(
    client: Client, ed: User, run: TrainingRun, training: Job
) -> None:
    training.request_cancel(ed, keep="adapter")
    assert choices(question(client, ed, run)) == ["checkpoint", ""]


def test_an_ended_run_offers_nothing_to_keep(client: Client, ed: User, run: TrainingRun) -> None:
    assert run.job is not None
    finish(run.job, State.FAILED)
    assert choices(question(client, ed, run)) == []


def test_a_loading_run_is_promised_no_adapter(
    client: Client, ed: User, run: TrainingRun, training: Job
) -> None:
    training.update_progress(step=0, phase="loading")
    assert stop(client, ed, run, keep="adapter") == 302
    page = client.get(run.get_absolute_url()).content.decode()
    assert "The run stops as soon as possible. Its best weights so far are kept as an adapter." in page


def test_a_search_run_offers_no_adapter(client: Client, ed: User, run: TrainingRun, training: Job) -> None:
    TrainingRun.objects.update(rung=0)
    assert choices(question(client, ed, run)) == ["checkpoint", ""]


def test_it_counts_the_other_runs_of_the_job(
    client: Client, ed: User, run: TrainingRun, training: Job, run_of_same_job: TrainingRun
) -> None:
    assert 'data-other-runs="1"' in question(client, ed, run)
    run_of_same_job.end("failed", step=3, code="diverged")
    assert "data-other-runs" not in question(client, ed, run)
