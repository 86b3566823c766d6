"""The live region of a run."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Evaluation, MetricSeries, TrainingRun, User
from tests.conftest import finish
from tests.dashboard.conftest import make_checkpoint, publish, start_training


def region_of(client: Client, user: User, run: TrainingRun) -> str:
    client.force_login(user)
    return client.get(reverse("training-run-progress", args=[run.pk])).content.decode()


def test_it_is_a_fragment(client: Client, vera: User, run: TrainingRun) -> None:
    region = region_of(client, vera, run)
    assert 'data-state="queued"' in region
    assert "<html" not in region


def test_it_shows_the_last_values(client: Client, vera: User, run: TrainingRun) -> None:
    values = {
        "train/tokens_per_second": 187.5,
        "system/memory_bytes": 1.5e9,
        "train/token_accuracy": 0.625,
    }
    for name, value in values.items():
        MetricSeries.objects.append(run, name, [(1, value)])
    page = region_of(client, vera, run)
    assert "188" in page
    assert "1.5 GB" in page
    assert "62.5 %" in page
    MetricSeries.objects.append(run, "validation/token_accuracy", [(1, 0.375)])
    page = region_of(client, vera, run)
    assert ("37.5 %" in page, "62.5 %" in page) == (True, False)


@pytest.mark.parametrize(
    ("keep", "state", "words"),
    [
        ("", "cancelling", "Its progress is discarded."),
        ("checkpoint", "cancelling", "saves a checkpoint and stops"),
        ("adapter", "running", "its best weights so far are saved as an adapter"),
    ],
)
def test_it_shows_what_a_stop_keeps(
    client: Client, vera: User, run: TrainingRun, keep: str, state: str, words: str
) -> None:
    start_training(run).request_cancel(keep=keep)
    region = region_of(client, vera, run)
    assert words in region
    assert f'data-state="{state}"' in region
    assert "left" not in region


def test_an_interrupted_run_will_only_save_its_adapter(client: Client, vera: User, run: TrainingRun) -> None:
    job = start_training(run)
    make_checkpoint(job, step=4)
    job.interrupt("The worker died.")
    job.request_cancel(keep="adapter")
    region = region_of(client, vera, run)
    assert "Interrupted, will continue by itself" in region
    assert "When a worker claims the run, it saves its best weights so far as an adapter" in region


def ended_arm(run: TrainingRun) -> TrainingRun:
    """Return the run, diverged while others continue in its job."""
    start_training(run)
    MetricSeries.objects.append(run, "train/loss", [(step, 2.0) for step in range(1, 4)])
    run.end("failed", step=3, code="diverged", message="The loss was not a number at step 3.")
    return run


def assert_no_progress(region: str) -> None:
    """Assert that neither progress nor a queue position is shown above the history."""
    now, _heading, _history = region.partition('<details class="events">')
    for words in ("<progress", "step 5", "percent", "50 %", "left</span>", "in the queue", "worker"):
        assert words not in now, words
    assert "start unknown" not in now


def test_an_ended_arm_shows_no_progress_of_its_job(client: Client, vera: User, run: TrainingRun) -> None:
    region = region_of(client, vera, ended_arm(run))
    assert 'data-state="failed"' in region
    assert 'data-settled="yes"' in region
    assert_no_progress(region)


def test_an_ended_arm_does_not_return_to_the_queue(client: Client, vera: User, run: TrainingRun) -> None:
    job = ended_arm(run).job
    assert job
    job.interrupt("The worker died.")
    job.requeue_or_fail()
    assert job.state == "queued"
    region = region_of(client, vera, run)
    assert 'data-state="failed"' in region
    assert "<summary>Events of the shared job</summary>" in region
    assert_no_progress(region)


def test_a_message_about_another_run_of_the_job_does_not_stand_for_this_one(
    client: Client, vera: User, run: TrainingRun, run_of_same_job: TrainingRun
) -> None:
    start_training(run).add_message("Quality, seed 1: 3,041,280 trainable parameters.")
    for shown in (run, run_of_same_job):
        region = region_of(client, vera, shown)
        assert "<summary>Events of the shared job</summary>" in region
        assert "3,041,280 trainable parameters" in region.partition("</summary>")[2]


def test_it_shows_the_last_event_of_a_job_of_its_own(client: Client, vera: User, run: TrainingRun) -> None:
    start_training(run).add_message("The newest checkpoint is damaged.")
    assert "<summary>The newest checkpoint is damaged." in region_of(client, vera, run)


def test_it_shows_the_progress_of_the_evaluation(client: Client, vera: User, run: TrainingRun) -> None:
    job = Evaluation.objects.submit(publish(run), None)
    assert "position 1 in the queue" in region_of(client, vera, run)
    job.move("claim", attempt=1)
    job.move("progress", phase="scoring", step=3, total_steps=12)
    region = region_of(client, vera, run)
    assert "3 of 12 answers scored" in region
    assert 'data-announcement="Evaluating, 25 percent"' in region


def test_after_the_evaluation_it_shows_no_progress(client: Client, vera: User, run: TrainingRun) -> None:
    finish(Evaluation.objects.submit(publish(run), None))
    assert_no_progress(region_of(client, vera, run))
