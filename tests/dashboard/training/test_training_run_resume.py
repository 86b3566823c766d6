"""Continuing a run that failed or was stopped, from its page."""

from __future__ import annotations

import shutil

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import State, TrainingRun, User
from tests.conftest import finish
from tests.dashboard.conftest import make_checkpoint


@pytest.fixture
def parked(run: TrainingRun) -> TrainingRun:
    """Stopped after five steps with the checkpoint of step 4 kept."""
    assert run.job is not None
    run.job.move("claim", attempt=1)
    run.job.move("progress")
    run.job.update_progress(step=5)
    make_checkpoint(run.job, step=4)
    run.job.request_cancel(keep="checkpoint")
    run.job.move("stopped")
    return run


def resume(client: Client, user: User, run: TrainingRun) -> int:
    client.force_login(user)
    return client.post(reverse("training-run-resume", args=[run.pk])).status_code


def page_of(client: Client, user: User, run: TrainingRun) -> str:
    client.force_login(user)
    return client.get(run.get_absolute_url()).content.decode()


def test_it_waits_again_for_a_worker(client: Client, ed: User, parked: TrainingRun) -> None:
    assert resume(client, ed, parked) == 302
    assert TrainingRun.objects.get().state == State.QUEUED
    assert "ed@example.org resumed it" in page_of(client, ed, parked)


def test_the_page_says_from_which_step(client: Client, ed: User, parked: TrainingRun) -> None:
    page = page_of(client, ed, parked)
    assert "Resume from step 4" in page
    assert "The checkpoint of step 4 of 10 is kept for 14 days, until " in page


def test_a_viewer_is_offered_nothing(client: Client, vera: User, parked: TrainingRun) -> None:
    assert "Resume from step" not in page_of(client, vera, parked)


def test_nothing_is_offered_without_a_checkpoint(client: Client, ed: User, parked: TrainingRun) -> None:
    assert parked.job is not None
    shutil.rmtree(parked.job.checkpoint_folder())
    assert "Resume from step" not in page_of(client, ed, parked)
    assert resume(client, ed, parked) == 302
    assert "no checkpoint to resume from" in page_of(client, ed, parked)


def test_a_second_press_changes_nothing(client: Client, ed: User, parked: TrainingRun) -> None:
    resume(client, ed, parked)
    resume(client, ed, parked)
    assert "nothing to resume" in page_of(client, ed, parked)
    assert parked.job is not None
    assert parked.job.events.filter(event="resume").count() == 1


def test_a_failed_run_offers_it_too(client: Client, ed: User, run: TrainingRun) -> None:
    assert run.job is not None
    make_checkpoint(run.job, step=7)
    finish(run.job, State.FAILED, error_code="disk_full", error_message="The disk is full.")
    assert "Resume from step 7" in page_of(client, ed, run)


def test_it_refuses_a_viewer(client: Client, vera: User, parked: TrainingRun) -> None:
    assert resume(client, vera, parked) == 403
    assert TrainingRun.objects.get().state == State.CANCELLED


def test_it_hides_the_run_from_an_outsider(client: Client, otto: User, parked: TrainingRun) -> None:
    assert resume(client, otto, parked) == 404


def test_it_changes_nothing_on_a_visit(client: Client, ed: User, parked: TrainingRun) -> None:
    client.force_login(ed)
    assert client.get(reverse("training-run-resume", args=[parked.pk])).status_code == 405
