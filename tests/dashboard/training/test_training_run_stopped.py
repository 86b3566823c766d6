"""The page of a stopped run: the progress that is still there."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from django.test import Client

from dashboard.models import Job, MetricSeries, TrainingRun, User
from tests.dashboard.conftest import make_checkpoint, start_training

CLEARED = "The checkpoint has been deleted since, so the run cannot be resumed."
NOTHING = "The progress was discarded, so the run cannot be resumed."
LOST = "The run had reached step 5, but its last steps could not be saved."


@pytest.fixture
def job(run: TrainingRun) -> Job:
    """The job of the run, after five steps."""
    MetricSeries.objects.append(run, "train/loss", [(step, 1.0) for step in range(1, 6)])
    return start_training(run)


def page_of(client: Client, user: User, run: TrainingRun) -> str:
    client.force_login(user)
    page = client.get(run.get_absolute_url()).content.decode()
    return " ".join(page.split('id="stopped"')[1].split("</section>")[0].split())


def stop(job: Job, by: User, keep: str, step: int | None) -> None:
    """Stop the job, with a checkpoint of this step on disk."""
    job.request_cancel(by, keep)
    if step:
        make_checkpoint(job, step=step)
    job.complete_stop(actor="w@host")


def test_it_shows_the_checkpoint(client: Client, ed: User, run: TrainingRun, job: Job) -> None:
    stop(job, ed, "checkpoint", 5)
    page = page_of(client, ed, run)
    assert "The checkpoint of step 5 of" in page
    assert "Resume from step 5" in page
    assert LOST not in page


def test_a_viewer_sees_lost_steps(client: Client, ed: User, vera: User, run: TrainingRun, job: Job) -> None:
    stop(job, ed, "checkpoint", 3)
    page = page_of(client, vera, run)
    assert LOST in page
    assert "The checkpoint of step 3 of" in page
    assert "Resume" not in page


@pytest.mark.parametrize("keep", ["checkpoint", ""])
def test_it_shows_discarded_progress(client: Client, ed: User, run: TrainingRun, job: Job, keep: str) -> None:
    stop(job, ed, keep, None)
    page = page_of(client, ed, run)
    assert NOTHING in page
    assert "Resume" not in page


def test_it_shows_a_deleted_checkpoint(client: Client, ed: User, run: TrainingRun, job: Job) -> None:
    stop(job, ed, "checkpoint", 5)
    shutil.rmtree(job.checkpoint_folder())
    page = page_of(client, ed, run)
    assert CLEARED in page
    assert "Resume" not in page


def test_an_unreadable_checkpoint_is_not_called_deleted(
    client: Client, ed: User, run: TrainingRun, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(job, ed, "checkpoint", 5)

    def refuse(_folder: Path) -> list[Path]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("workers.contract.checkpoint_ownership.valid_checkpoints", refuse)
    page = page_of(client, ed, run)
    assert "The checkpoint cannot be read at the moment" in page
    assert CLEARED not in page


def test_a_run_stopped_before_training(client: Client, ed: User, run: TrainingRun) -> None:
    assert run.job is not None
    assert run.job.request_cancel(ed, "checkpoint")
    assert "Training had not started." in page_of(client, ed, run)
