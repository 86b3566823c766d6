"""The actions on the page of a failed run: the most helpful one first."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone
from django.utils.formats import date_format

from dashboard.models import State, TrainingRun, User
from tests.conftest import finish
from tests.dashboard.conftest import make_checkpoint

AGAIN, RESUME, SMALLER = "Try again with these settings", "Resume from step 7", "Reduce the batch size"


def failed(run: TrainingRun, code: str, *, checkpoint: bool = True) -> TrainingRun:
    """Return the run, failed after the checkpoint of step 7."""
    assert run.job is not None
    if checkpoint:
        make_checkpoint(run.job, step=7)
    finish(run.job, State.FAILED, error_code=code, error_message="It went wrong.")
    return run


def page_of(client: Client, user: User, run: TrainingRun) -> str:
    client.force_login(user)
    page = client.get(run.get_absolute_url()).content.decode()
    return page.split('id="run-failure"')[1].split('id="run-progress"')[0]


def primary(page: str) -> list[str]:
    """Return the label of every primary button."""
    after = page.split("btn-primary")[1:]
    return [part.split(">", 1)[1].split("</a>")[0].split("</button>")[0] for part in after]


@pytest.mark.parametrize("code", ["disk_full", "worker_lost"])
def test_with_a_checkpoint_resume_comes_first(client: Client, ed: User, run: TrainingRun, code: str) -> None:
    page = page_of(client, ed, failed(run, code))
    (first,) = primary(page)
    assert RESUME in first
    assert "resume." in page
    assert "start again" not in page


@pytest.mark.parametrize("code", ["disk_full", "worker_lost"])
def test_without_a_checkpoint_restart_comes_first(
    client: Client, ed: User, run: TrainingRun, code: str
) -> None:
    page = page_of(client, ed, failed(run, code, checkpoint=False))
    (first,) = primary(page)
    assert first == AGAIN
    assert "start again." in page
    assert "is kept for" not in page


def test_after_a_checkpoint_mismatch_restart_comes_first(client: Client, ed: User, run: TrainingRun) -> None:
    page = page_of(client, ed, failed(run, "checkpoint_mismatch"))
    assert primary(page) == [AGAIN]
    assert page.index(AGAIN) < page.index(RESUME)
    assert "it begins at step 0" in page
    assert "can be resumed from there" not in page


def test_after_lack_of_memory_a_smaller_batch_comes_first(client: Client, ed: User, run: TrainingRun) -> None:
    page = page_of(client, ed, failed(run, "out_of_memory"))
    assert primary(page) == [SMALLER]
    assert RESUME in page


def test_a_viewer_sees_how_long_the_checkpoint_is_kept(client: Client, vera: User, run: TrainingRun) -> None:
    page = page_of(client, vera, failed(run, "disk_full"))
    until = date_format(timezone.localtime() + timedelta(days=14), "j F Y")
    assert f"The checkpoint of step 7 of 10 is kept for 14 days, until {until}." in page
    assert RESUME not in page
