"""Resuming a failed or stopped run on its page."""

from __future__ import annotations

import shutil

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import State, TrainingRun, User
from tests.dashboard.conftest import make_checkpoint, start_training


@pytest.fixture
def parked(run: TrainingRun) -> TrainingRun:
    """A run stopped after five steps with the checkpoint of step 4."""
    job = start_training(run)
    make_checkpoint(job, step=4)
    job.request_cancel(keep="checkpoint")
    job.move("stopped")
    return run


def resume(client: Client, user: User, run: TrainingRun) -> int:
    client.force_login(user)
    return client.post(reverse("training-run-resume", args=[run.pk])).status_code


def page_of(client: Client, user: User, run: TrainingRun) -> str:
    client.force_login(user)
    return client.get(run.get_absolute_url()).content.decode()


def test_a_resumed_run_returns_to_the_queue(client: Client, ed: User, parked: TrainingRun) -> None:
    assert resume(client, ed, parked) == 302
    assert TrainingRun.objects.get().state == State.QUEUED
    assert "ed@example.org resumed it" in page_of(client, ed, parked)


def test_the_page_names_the_checkpoint(client: Client, ed: User, parked: TrainingRun) -> None:
    page = page_of(client, ed, parked)
    assert "Resume from step 4" in page
    assert "The checkpoint of step 4 of 10 is kept for 14 days, until " in page


def test_without_a_checkpoint_it_is_refused(client: Client, ed: User, parked: TrainingRun) -> None:
    assert parked.job is not None
    shutil.rmtree(parked.job.checkpoint_folder())
    assert "Resume from step" not in page_of(client, ed, parked)
    assert resume(client, ed, parked) == 302
    assert "no checkpoint to resume from" in page_of(client, ed, parked)


def test_a_second_resume_changes_nothing(client: Client, ed: User, parked: TrainingRun) -> None:
    resume(client, ed, parked)
    resume(client, ed, parked)
    assert "nothing to resume" in page_of(client, ed, parked)
    assert parked.job is not None
    assert parked.job.events.filter(event="resume").count() == 1
