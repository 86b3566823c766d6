"""Stopping a job from the queue."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Job, TrainingRun, User


def stop(client: Client, run: TrainingRun, back: str = "") -> object:
    return client.post(reverse("queue-cancel", args=[run.job_id]), {"next": back})


def test_a_waiting_job_leaves_the_queue(client: Client, ed: User, run: TrainingRun) -> None:
    client.force_login(ed)
    assert stop(client, run).url == reverse("queue-index")  # type: ignore[attr-defined]
    assert Job.objects.get(training_runs=run).state == "cancelled"


def test_a_running_job_is_asked_to_stop(client: Client, ed: User, run: TrainingRun) -> None:
    assert run.job
    run.job.move("claim", attempt=1)
    client.force_login(ed)
    stop(client, run)
    assert Job.objects.get(training_runs=run).state == "cancelling"


def test_a_job_that_has_ended_stays_as_it_ended(client: Client, ed: User, run: TrainingRun) -> None:
    client.force_login(ed)
    stop(client, run)
    page = client.post(reverse("queue-cancel", args=[run.job_id]), follow=True).content.decode()
    assert "had already ended" in page


def test_it_goes_back_to_where_one_came_from(client: Client, ed: User, run: TrainingRun) -> None:
    client.force_login(ed)
    assert stop(client, run, "/datasets/1/").url == "/datasets/1/"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "back", ["https://evil.example.org/", "//evil.example.org", "javascript:alert(1)", "nowhere"]
)
def test_it_never_leads_away_from_the_site(client: Client, ed: User, run: TrainingRun, back: str) -> None:
    client.force_login(ed)
    assert stop(client, run, back).url == reverse("queue-index")  # type: ignore[attr-defined]


def test_it_refuses_a_viewer(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    assert stop(client, run).status_code == 403  # type: ignore[attr-defined]
    assert Job.objects.get(training_runs=run).state == "queued"


def test_it_hides_the_job_from_an_outsider(client: Client, otto: User, run: TrainingRun) -> None:
    client.force_login(otto)
    assert stop(client, run).status_code == 404  # type: ignore[attr-defined]


def test_it_says_that_a_training_loses_what_it_has_learned(
    client: Client, ed: User, run: TrainingRun
) -> None:
    client.force_login(ed)
    assert (
        "The job leaves the queue and does not start." in client.get(reverse("queue-board")).content.decode()
    )
    assert run.job is not None
    run.job.move("claim", attempt=1)
    board = client.get(reverse("queue-board")).content.decode()
    assert "The progress of the run is discarded. To keep it, stop the run on its own page." in board


def test_who_was_told_that_it_only_leaves_the_queue_is_asked_again_once_it_has_begun(
    client: Client, ed: User, run: TrainingRun
) -> None:
    client.force_login(ed)
    assert '<input type="hidden" name="seen" value="waiting">' in (
        client.get(reverse("queue-board")).content.decode()
    )
    job = Job.objects.get(pk=run.job_id)
    job.move("claim", attempt=1)
    sent = {"seen": "waiting", "next": "/runs/"}
    answer = client.post(reverse("queue-cancel", args=[job.pk]), sent)
    page = answer.content.decode()
    assert answer.status_code == 422
    assert "This job has started meanwhile, so work may be lost. Please choose again." in page
    assert "The progress of the run is discarded. To keep it, stop the run on its own page." in page
    assert (run.get_absolute_url() in page, 'name="next" value="/runs/"' in page) == (True, True)
    assert Job.objects.get(pk=job.pk).state == "starting"
    assert 'name="seen"' not in client.get(reverse("queue-board")).content.decode()
    answer = client.post(reverse("queue-cancel", args=[job.pk]), {"next": "/runs/"})
    assert (answer.status_code, Job.objects.get(pk=job.pk).state) == (302, "cancelling")


def test_who_was_told_that_it_only_leaves_the_queue_is_believed_while_it_waits(
    client: Client, ed: User, run: TrainingRun
) -> None:
    client.force_login(ed)
    client.post(reverse("queue-cancel", args=[run.job_id]), {"seen": "waiting"})
    assert Job.objects.get(pk=run.job_id).state == "cancelled"


def test_it_says_that_every_run_of_a_job_is_stopped(client: Client, ed: User, run: TrainingRun) -> None:
    other = TrainingRun.objects.get(pk=run.pk)
    other.pk, other._state.adding = None, True
    other.save()
    client.force_login(ed)
    board = client.get(reverse("queue-board")).content.decode()
    assert "The job leaves the queue. Its 2 runs do not start." in board
    Job.objects.get(pk=run.job_id).move("claim", attempt=1)
    board = client.get(reverse("queue-board")).content.decode()
    assert "The progress of its 2 runs is discarded." in board
