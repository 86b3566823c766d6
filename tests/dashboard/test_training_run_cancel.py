"""Stopping a run, whether it waits, works or has ended."""

from __future__ import annotations

from django.test import Client
from django.urls import reverse

from dashboard.models import State, TrainingRun, User
from tests.conftest import finish


def stop(client: Client, user: User, run: TrainingRun) -> int:
    client.force_login(user)
    return client.post(reverse("training-run-cancel", args=[run.pk])).status_code


def test_it_stops_a_waiting_run_at_once(client: Client, ed: User, run: TrainingRun) -> None:
    assert stop(client, ed, run) == 302
    assert TrainingRun.objects.get().state == State.CANCELLED


def test_it_asks_a_working_run_to_stop(client: Client, ed: User, run: TrainingRun) -> None:
    assert run.job is not None
    run.job.move("claim", attempt=1)
    run.job.move("progress")
    stop(client, ed, run)
    assert TrainingRun.objects.get().state == State.CANCELLING


def test_it_leaves_an_ended_run_alone(client: Client, ed: User, run: TrainingRun) -> None:
    assert run.job is not None
    finish(run.job, State.FAILED)
    assert stop(client, ed, run) == 302
    assert TrainingRun.objects.get().state == State.FAILED


def test_it_refuses_a_viewer(client: Client, vera: User, run: TrainingRun) -> None:
    assert stop(client, vera, run) == 403
    assert TrainingRun.objects.get().state == State.QUEUED


def test_it_hides_the_run_from_an_outsider(client: Client, otto: User, run: TrainingRun) -> None:
    assert stop(client, otto, run) == 404
    assert TrainingRun.objects.get().state == State.QUEUED


def test_it_changes_nothing_on_a_visit(client: Client, ed: User, run: TrainingRun) -> None:
    client.force_login(ed)
    assert client.get(reverse("training-run-cancel", args=[run.pk])).status_code == 405
