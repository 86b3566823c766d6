"""What the page of a failed run offers: words that agree with its buttons, the most helpful one first."""

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
    """It has failed after the checkpoint of step 7."""
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
    """The words on every primary button."""
    after = page.split("btn-primary")[1:]
    return [part.split(">", 1)[1].split("</a>")[0].split("</button>")[0] for part in after]


@pytest.mark.parametrize("code", ["disk_full", "worker_lost", "publish_failed"])
def test_it_advises_to_resume_what_can_be_resumed(
    client: Client, ed: User, run: TrainingRun, code: str
) -> None:
    page = page_of(client, ed, failed(run, code))
    (first,) = primary(page)
    assert RESUME in first
    assert "resume." in page
    assert "start again" not in page


@pytest.mark.parametrize("code", ["disk_full", "worker_lost", "publish_failed"])
def test_it_advises_to_start_again_where_nothing_is_kept(
    client: Client, ed: User, run: TrainingRun, code: str
) -> None:
    page = page_of(client, ed, failed(run, code, checkpoint=False))
    (first,) = primary(page)
    assert first == AGAIN
    assert "start again." in page
    assert "is kept for" not in page


def test_it_does_not_lead_back_to_a_checkpoint_that_does_not_fit(
    client: Client, ed: User, run: TrainingRun
) -> None:
    page = page_of(client, ed, failed(run, "checkpoint_mismatch"))
    assert primary(page) == [AGAIN]
    assert page.index(AGAIN) < page.index(RESUME)
    assert "it begins at step 0" in page
    assert "can be resumed from there" not in page


@pytest.mark.parametrize("code", ["publish_failed", "checkpoint_mismatch", "disk_full", "internal_error"])
def test_it_offers_no_setting_that_mends_nothing(
    client: Client, ed: User, run: TrainingRun, code: str
) -> None:
    assert SMALLER not in page_of(client, ed, failed(run, code))


def test_it_leads_with_another_setting_where_the_same_would_fail_again(
    client: Client, ed: User, run: TrainingRun
) -> None:
    page = page_of(client, ed, failed(run, "out_of_memory"))
    assert primary(page) == [SMALLER]
    assert RESUME in page


def test_it_tells_everybody_what_is_kept_and_until_when(client: Client, vera: User, run: TrainingRun) -> None:
    page = page_of(client, vera, failed(run, "disk_full"))
    until = date_format(timezone.localtime() + timedelta(days=14), "j F Y")
    assert f"The checkpoint of step 7 of 10 is kept for 14 days, until {until}." in page
    assert RESUME not in page


def test_it_promises_nothing_of_what_is_gone(client: Client, vera: User, run: TrainingRun) -> None:
    assert "is kept for" not in page_of(client, vera, failed(run, "disk_full", checkpoint=False))
