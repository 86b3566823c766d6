"""Stopping a run, whether it waits, works or has ended, and the question what shall stay of it."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Job, State, TrainingRun, User
from tests.conftest import finish
from tests.dashboard.conftest import make_checkpoint


@pytest.fixture
def training(run: TrainingRun) -> Job:
    """The job of a run that a worker has trained for five steps."""
    assert run.job is not None
    run.job.move("claim", attempt=1)
    run.job.move("progress")
    run.job.advance(step=5)
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
    assert training.stop_wanted() == wanted


def test_it_refuses_to_keep_anything_else(client: Client, ed: User, run: TrainingRun, training: Job) -> None:
    assert stop(client, ed, run, keep="everything") == 422
    assert training.stop_wanted() == ""


def test_it_leaves_an_ended_run_alone(client: Client, ed: User, run: TrainingRun) -> None:
    assert run.job is not None
    finish(run.job, State.FAILED)
    assert stop(client, ed, run) == 302
    assert TrainingRun.objects.get().state == State.FAILED


def test_it_says_that_it_came_too_late(client: Client, ed: User, run: TrainingRun, training: Job) -> None:
    stop(client, ed, run)
    stop(client, ed, run, keep="checkpoint")
    page = client.get(run.get_absolute_url()).content.decode()
    assert "less of it is kept than you asked for" in page


def test_its_question_is_a_page_of_its_own(client: Client, ed: User, run: TrainingRun, training: Job) -> None:
    page = question(client, ed, run)
    for choice in ("as an adapter", "to resume later", "Discard what it has learned", "Let it go on"):
        assert choice in page
    assert training.stop_wanted() == ""


def test_a_run_that_has_learned_nothing_has_nothing_to_keep(
    client: Client, ed: User, run: TrainingRun
) -> None:
    page = question(client, ed, run)
    assert "Take it out of the queue" in page
    assert "as an adapter" not in page


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


def test_it_refuses_a_viewer(client: Client, vera: User, run: TrainingRun) -> None:
    assert stop(client, vera, run) == 403
    assert TrainingRun.objects.get().state == State.QUEUED


def test_it_hides_the_run_from_an_outsider(client: Client, otto: User, run: TrainingRun) -> None:
    assert stop(client, otto, run) == 404
    assert TrainingRun.objects.get().state == State.QUEUED
