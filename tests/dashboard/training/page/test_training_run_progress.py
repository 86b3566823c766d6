"""The live region of a run, alone."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Evaluation, Job, MetricSeries, TrainingRun, User
from tests.conftest import finish
from tests.dashboard.conftest import make_checkpoint, publish


def piece_of(client: Client, user: User, run: TrainingRun) -> str:
    client.force_login(user)
    return client.get(reverse("training-run-progress", args=[run.pk])).content.decode()


def test_it_is_a_piece_and_not_a_page(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    page = client.get(reverse("training-run-progress", args=[run.pk])).content
    assert b'data-state="queued"' in page
    assert b"<html" not in page


def test_it_has_a_short_form_for_lists(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    page = client.get(reverse("training-run-progress", args=[run.pk]), {"part": "cell"}).content
    assert b"Waiting" in page
    assert b"Training loss" not in page


def test_it_shows_the_last_values(client: Client, vera: User, run: TrainingRun) -> None:
    for name, value in (("train/tokens_per_second", 187.5), ("system/memory_bytes", 1.5e9)):
        MetricSeries.objects.append(run, name, [(1, value)])
    client.force_login(vera)
    page = client.get(reverse("training-run-progress", args=[run.pk])).content.decode()
    assert "188" in page
    assert "1.5 GB" in page


def training(run: TrainingRun) -> Job:
    """The run's job after five of ten steps."""
    assert run.job is not None
    run.job.move("claim", attempt=1)
    run.job.move("progress", phase="training", step=5, total_steps=10, eta_seconds=60.0)
    return run.job


@pytest.mark.parametrize(
    ("keep", "state", "words"),
    [
        ("", "cancelling", "Its progress is discarded."),
        ("checkpoint", "cancelling", "saves a checkpoint and stops"),
        ("adapter", "running", "its best weights so far are saved as an adapter"),
    ],
)
def test_it_says_what_a_stop_will_leave(
    client: Client, vera: User, run: TrainingRun, keep: str, state: str, words: str
) -> None:
    training(run).request_cancel(keep=keep)
    piece = piece_of(client, vera, run)
    assert words in piece
    assert f'data-state="{state}"' in piece
    assert "left" not in piece


def test_an_interrupted_run_says_that_it_will_only_save(client: Client, vera: User, run: TrainingRun) -> None:
    job = training(run)
    make_checkpoint(job, step=4)
    job.interrupt("The worker died.")
    job.request_cancel(keep="adapter")
    piece = piece_of(client, vera, run)
    assert "Interrupted, will continue by itself" in piece
    assert "When a worker claims the run, it saves its best weights so far as an adapter" in piece


def ended_arm(run: TrainingRun) -> TrainingRun:
    """The run after it has diverged, while others train on in its job."""
    training(run)
    MetricSeries.objects.append(run, "train/loss", [(step, 2.0) for step in range(1, 4)])
    run.end("failed", step=3, code="diverged", message="The loss was not a number at step 3.")
    return run


def shows_no_work(piece: str) -> None:
    """Neither progress nor a place in the queue; the history below may tell of both."""
    now, _heading, _history = piece.partition('<details class="events">')
    for words in ("<progress", "step 5", "percent", "50 %", "left</span>", "in the queue", "worker"):
        assert words not in now, words
    assert "start unknown" not in now


def test_an_arm_that_has_ended_shows_nothing_of_what_the_others_do(
    client: Client, vera: User, run: TrainingRun
) -> None:
    piece = piece_of(client, vera, ended_arm(run))
    assert 'data-state="failed"' in piece
    assert 'data-settled="yes"' in piece
    shows_no_work(piece)


def test_an_arm_that_has_ended_does_not_wait_again_with_its_job(
    client: Client, vera: User, run: TrainingRun
) -> None:
    job = ended_arm(run).job
    assert job
    job.interrupt("The worker died.")
    job.requeue_or_fail()
    assert job.state == "queued"
    piece = piece_of(client, vera, run)
    assert 'data-state="failed"' in piece
    assert "<summary>Events of the shared job</summary>" in piece
    shows_no_work(piece)


def test_a_run_is_over_before_its_job_has_said_good_bye(client: Client, vera: User, run: TrainingRun) -> None:
    training(run)
    run.end("succeeded", step=10)
    piece = piece_of(client, vera, run)
    assert 'data-state="succeeded"' in piece
    shows_no_work(piece)


def test_after_the_run_it_shows_how_far_its_evaluation_is(
    client: Client, vera: User, run: TrainingRun
) -> None:
    job = Evaluation.objects.submit(publish(run), None)
    assert "position 1 in the queue" in piece_of(client, vera, run)
    job.move("claim", attempt=1)
    job.move("progress", phase="scoring", step=3, total_steps=12)
    piece = piece_of(client, vera, run)
    assert "3 of 12 answers scored" in piece
    assert 'data-announcement="Evaluating, 25 percent"' in piece


def test_once_its_evaluation_has_ended_nothing_works(client: Client, vera: User, run: TrainingRun) -> None:
    finish(Evaluation.objects.submit(publish(run), None))
    shows_no_work(piece_of(client, vera, run))


def test_red_is_for_failures_alone(client: Client, vera: User, run: TrainingRun) -> None:
    job = training(run)
    job.request_cancel()
    job.move("stopped")
    assert "is-broken" not in piece_of(client, vera, run)


def test_it_hides_the_run_from_an_outsider(client: Client, otto: User, run: TrainingRun) -> None:
    client.force_login(otto)
    assert client.get(reverse("training-run-progress", args=[run.pk])).status_code == 404
