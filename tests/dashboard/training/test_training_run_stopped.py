"""The page of a stopped run says what is left of it now, not what was meant to be left."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from django.test import Client

from dashboard.models import Job, MetricSeries, TrainingRun, User
from tests.dashboard.conftest import make_checkpoint

CLEARED = "The checkpoint has been deleted since, so the run cannot be resumed."
NOTHING = "The progress was discarded, so the run cannot be resumed."
LOST = "The run had reached step 5, but its last steps could not be saved."


@pytest.fixture
def job(run: TrainingRun) -> Job:
    """Its worker has trained five steps."""
    assert run.job is not None
    run.job.move("claim", attempt=1, worker="w@host")
    run.job.move("progress")
    run.job.update_progress(step=5)
    MetricSeries.objects.append(run, "train/loss", [(step, 1.0) for step in range(1, 6)])
    return run.job


def page_of(client: Client, user: User, run: TrainingRun) -> str:
    client.force_login(user)
    page = client.get(run.get_absolute_url()).content.decode()
    return " ".join(page.split('id="stopped"')[1].split("</section>")[0].split())


def stop(job: Job, by: User, keep: str, step: int | None) -> None:
    """It stops, with a checkpoint of this step on the disk."""
    job.request_cancel(by, keep)
    if step:
        make_checkpoint(job, step=step)
    job.complete_stop(actor="w@host")


def test_it_can_be_resumed_from_where_it_stood(client: Client, ed: User, run: TrainingRun, job: Job) -> None:
    stop(job, ed, "checkpoint", 5)
    page = page_of(client, ed, run)
    assert "The checkpoint of step 5 of" in page
    assert "Resume from step 5" in page
    assert LOST not in page


def test_everybody_reads_where_its_last_steps_are_lost(
    client: Client, ed: User, vera: User, run: TrainingRun, job: Job
) -> None:
    stop(job, ed, "checkpoint", 3)
    page = page_of(client, vera, run)
    assert LOST in page
    assert "The checkpoint of step 3 of" in page
    assert "Resume" not in page


@pytest.mark.parametrize("keep", ["checkpoint", ""])
def test_it_says_that_nothing_was_kept(
    client: Client, ed: User, run: TrainingRun, job: Job, keep: str
) -> None:
    stop(job, ed, keep, None)
    page = page_of(client, ed, run)
    assert NOTHING in page
    assert "Resume" not in page


def test_it_says_that_a_kept_checkpoint_has_been_cleared_since(
    client: Client, ed: User, run: TrainingRun, job: Job
) -> None:
    stop(job, ed, "checkpoint", 5)
    shutil.rmtree(job.checkpoint_folder())
    page = page_of(client, ed, run)
    assert CLEARED in page
    assert "Resume" not in page


def test_it_calls_a_checkpoint_on_a_silent_disk_not_cleared(
    client: Client, ed: User, run: TrainingRun, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(job, ed, "checkpoint", 5)

    def refuse(_folder: Path) -> list[Path]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("workers.contract.checkpoint_ownership.valid_checkpoints", refuse)
    page = page_of(client, ed, run)
    assert "The checkpoint cannot be read at the moment" in page
    assert CLEARED not in page


def test_a_run_that_never_trained_has_lost_nothing(client: Client, ed: User, run: TrainingRun) -> None:
    assert run.job is not None
    assert run.job.request_cancel(ed, "checkpoint")
    assert "Training had not started." in page_of(client, ed, run)
