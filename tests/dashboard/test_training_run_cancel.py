"""Stopping a run, whether it waits, works or has ended, and the question what shall stay of it."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Job, State, TrainingRun, User
from dashboard.models.stopping import arms_to_stop
from tests.conftest import finish
from tests.dashboard.conftest import make_checkpoint


@pytest.fixture
def training(run: TrainingRun) -> Job:
    """The job of a run that a worker has trained for five steps."""
    assert run.job is not None
    run.job.move("claim", attempt=1)
    run.job.move("progress")
    run.job.update_progress(step=5, total_steps=10, phase="training", eta_seconds=60.0)
    return run.job


def stop(client: Client, user: User, run: TrainingRun, **values: str) -> int:
    client.force_login(user)
    return client.post(reverse("training-run-cancel", args=[run.pk]), values).status_code


def question(client: Client, user: User, run: TrainingRun) -> str:
    client.force_login(user)
    answer = client.get(reverse("training-run-cancel", args=[run.pk]))
    assert answer.status_code == 200
    return answer.content.decode()


def test_it_stops_a_waiting_run_at_once(client: Client, ed: User, run: TrainingRun) -> None:
    assert stop(client, ed, run) == 302
    assert TrainingRun.objects.get().state == State.CANCELLED


@pytest.mark.parametrize(("keep", "wanted"), [("", "cancel"), ("adapter", "finish"), ("checkpoint", "park")])
def test_it_asks_a_working_run_to_stop(
    client: Client, ed: User, run: TrainingRun, training: Job, keep: str, wanted: str
) -> None:
    assert stop(client, ed, run, keep=keep) == 302
    assert training.read_stop_request() == wanted


def test_it_refuses_to_keep_anything_else(client: Client, ed: User, run: TrainingRun, training: Job) -> None:
    assert stop(client, ed, run, keep="everything") == 422
    assert training.read_stop_request() == ""


def test_it_leaves_an_ended_run_alone_and_says_so(client: Client, ed: User, run: TrainingRun) -> None:
    assert run.job is not None
    finish(run.job, State.FAILED)
    assert stop(client, ed, run) == 302
    assert TrainingRun.objects.get().state == State.FAILED
    assert "It has already ended: Failed." in client.get(run.get_absolute_url()).content.decode()


def test_it_says_that_it_came_too_late(client: Client, ed: User, run: TrainingRun, training: Job) -> None:
    stop(client, ed, run)
    stop(client, ed, run, keep="checkpoint")
    page = client.get(run.get_absolute_url()).content.decode()
    assert "less of it is kept than you ask for" in page


def test_its_question_is_a_page_of_its_own(client: Client, ed: User, run: TrainingRun, training: Job) -> None:
    page = question(client, ed, run)
    for choice in ("as an adapter", "to resume later", "Discard what it has learned", "Let it go on"):
        assert choice in page
    assert training.read_stop_request() == ""


def test_a_run_that_has_learned_nothing_has_nothing_to_keep(
    client: Client, ed: User, run: TrainingRun
) -> None:
    page = question(client, ed, run)
    assert "Take it out of the queue" in page
    assert "as an adapter" not in page


def seen_waiting(client: Client, user: User, run: TrainingRun) -> dict[str, str]:
    """What the form sends that was shown while the run waited."""
    assert '<input type="hidden" name="seen" value="waiting">' in question(client, user, run)
    return {"keep": "", "seen": "waiting"}


def test_it_is_taken_out_of_the_queue_while_it_waits(client: Client, ed: User, run: TrainingRun) -> None:
    assert stop(client, ed, run, **seen_waiting(client, ed, run)) == 302
    assert TrainingRun.objects.get().state == State.CANCELLED


def test_who_was_told_that_nothing_is_lost_is_asked_again_once_it_trains(
    client: Client, ed: User, run: TrainingRun
) -> None:
    sent = seen_waiting(client, ed, run)
    job = Job.objects.get(pk=run.job_id)
    job.move("claim", attempt=1)
    job.move("progress")
    answer = client.post(reverse("training-run-cancel", args=[run.pk]), sent)
    page = answer.content.decode()
    assert answer.status_code == 422
    assert "It has begun meanwhile, so something may be lost. Please choose again." in page
    for choice in ("as an adapter", "to resume later", "Discard what it has learned", "Let it go on"):
        assert choice in page
    assert 'name="seen"' not in page
    assert Job.objects.get(pk=job.pk).read_stop_request() == ""


def test_who_was_told_that_nothing_is_lost_is_told_when_it_has_ended(
    client: Client, ed: User, run: TrainingRun
) -> None:
    sent = seen_waiting(client, ed, run)
    finish(Job.objects.get(pk=run.job_id), State.FAILED)
    assert stop(client, ed, run, **sent) == 302
    assert "It has already ended: Failed." in client.get(run.get_absolute_url()).content.decode()


def test_a_waiting_run_with_a_checkpoint_has_something_to_keep(
    client: Client, ed: User, run: TrainingRun, training: Job
) -> None:
    make_checkpoint(training, step=4)
    training.interrupt("The worker died.")
    assert "to resume later" in question(client, ed, run)


def test_keeping_the_best_is_asked_once(client: Client, ed: User, run: TrainingRun, training: Job) -> None:
    training.request_cancel(ed, keep="adapter")
    page = question(client, ed, run)
    assert "as an adapter" not in page
    assert "to resume later" in page


def test_it_asks_nothing_about_what_has_ended(client: Client, ed: User, run: TrainingRun) -> None:
    assert run.job is not None
    finish(run.job, State.FAILED)
    assert "there is nothing to stop" in question(client, ed, run)


@pytest.fixture
def other(run: TrainingRun) -> TrainingRun:
    """A run that trains in the same job."""
    other = TrainingRun.objects.get(pk=run.pk)
    other.pk, other._state.adding, other.name = None, True, "The other"
    other.save()
    return other


@pytest.mark.parametrize(("keep", "wish"), [("", "cancel"), ("adapter", "finish")])
def test_it_stops_one_run_of_two_alone(
    client: Client, ed: User, run: TrainingRun, training: Job, other: TrainingRun, keep: str, wish: str
) -> None:
    assert stop(client, ed, run, keep=keep) == 302
    assert (training.read_stop_request(), arms_to_stop(training)) == ("", {0: wish})
    page = client.get(run.get_absolute_url()).content.decode()
    assert ("What it has learned is discarded." in page) == (wish == "cancel")
    assert ("the best so far is saved as an adapter." in page) == (wish == "finish")
    assert "left</span>" not in page, "no time is told for steps that it will not do"
    assert ("training-run-cancel" in page or 'id="stop-run"' in page) == (wish == "finish")
    assert 'id="stop-run"' in client.get(other.get_absolute_url()).content.decode()


def test_one_that_loads_promises_no_adapter_before_it_has_learned_something(
    client: Client, ed: User, run: TrainingRun, training: Job
) -> None:
    training.update_progress(step=0, phase="loading")
    assert stop(client, ed, run, keep="adapter") == 302
    page = client.get(run.get_absolute_url()).content.decode()
    assert "What it has learned by then is kept as an adapter." in page
    assert "the best so far is saved" not in page


def test_its_question_says_who_goes_on_and_offers_no_checkpoint_in_common(
    client: Client, ed: User, run: TrainingRun, training: Job, other: TrainingRun
) -> None:
    page = question(client, ed, run)
    assert "One more run trains in the same job. It is not stopped, and goes on as before." in page
    assert "as an adapter" in page
    assert "to resume later" not in page
    other.end("failed", step=3, code="diverged")
    page = question(client, ed, run)
    assert "in the same job" not in page
    assert "to resume later" in page


def test_it_asks_again_who_wants_to_keep_a_checkpoint_in_common(
    client: Client, ed: User, run: TrainingRun, training: Job, other: TrainingRun
) -> None:
    client.force_login(ed)
    answer = client.post(reverse("training-run-cancel", args=[run.pk]), {"keep": "checkpoint"})
    assert answer.status_code == 422
    page = answer.content.decode()
    assert "have one checkpoint in common" in page
    assert "Keep the best so far as an adapter" in page
    assert (training.read_stop_request(), arms_to_stop(training)) == ("", {})


@pytest.mark.parametrize("keep", ["", "adapter", "checkpoint"])
def test_a_run_that_has_ended_never_stops_the_one_beside_it(
    client: Client, ed: User, run: TrainingRun, training: Job, other: TrainingRun, keep: str
) -> None:
    run.end("succeeded", step=5)
    assert stop(client, ed, run, keep=keep) == 302
    assert "It has already ended: Finished." in client.get(run.get_absolute_url()).content.decode()
    training.refresh_from_db()
    assert (training.state, training.read_stop_request(), arms_to_stop(training)) == (State.RUNNING, "", {})


def test_a_short_run_that_looks_for_a_rate_offers_no_adapter(
    client: Client, ed: User, run: TrainingRun, training: Job
) -> None:
    TrainingRun.objects.update(rung=0)
    page = question(client, ed, run)
    assert "as an adapter" not in page
    assert "Discard what it has learned" in page


def test_of_one_run_of_two_it_refuses_a_viewer_and_hides_it_from_an_outsider(
    client: Client, vera: User, otto: User, run: TrainingRun, training: Job, other: TrainingRun
) -> None:
    assert (stop(client, vera, run), stop(client, otto, run)) == (403, 404)
    assert arms_to_stop(training) == {}


def test_it_refuses_a_viewer(client: Client, vera: User, run: TrainingRun) -> None:
    assert stop(client, vera, run) == 403
    assert TrainingRun.objects.get().state == State.QUEUED


def test_it_hides_the_run_from_an_outsider(client: Client, otto: User, run: TrainingRun) -> None:
    assert stop(client, otto, run) == 404
    assert TrainingRun.objects.get().state == State.QUEUED
