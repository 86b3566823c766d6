"""High, normal or low: a manager's word comes before any turn."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Job, TrainingRun, User
from tests.conftest import make_run


def prioritise(client: Client, job: Job, priority: object) -> object:
    return client.post(reverse("queue-prioritise", args=[job.pk]), {"priority": priority})


@pytest.fixture
def later(run: TrainingRun) -> Job:
    """A job behind the run's."""
    made = make_run(run.project, run.dataset_version.dataset, run.base_model, by=run.created_by, name="Later")
    assert made.job
    return made.job


def test_a_manager_lets_a_job_go_first(client: Client, mara: User, later: Job) -> None:
    client.force_login(mara)
    prioritise(client, later, 1)
    assert Job.objects.get(pk=later.pk).position() == 1
    assert later.events.get(event="prioritise").description == "mara@example.org changed its priority: High"


def test_it_loses_the_place_that_it_was_moved_to(client: Client, mara: User, later: Job) -> None:
    Job.objects.filter(pk=later.pk).update(place=1, own_place=1)
    client.force_login(mara)
    prioritise(client, later, -1)
    later.refresh_from_db()
    assert (later.priority, later.place, later.own_place) == (Job.Priority.LOW, None, None)


@pytest.mark.parametrize("priority", ["", "2", "high", "9" * 40])
def test_other_words_are_refused(client: Client, mara: User, later: Job, priority: str) -> None:
    client.force_login(mara)
    address = reverse("queue-prioritise", args=[later.pk])
    page = client.post(address, {"priority": priority}, follow=True).content.decode()
    assert "Choose high, normal or low." in page
    assert Job.objects.get(pk=later.pk).priority == Job.Priority.NORMAL


def test_a_job_that_has_started_keeps_its_own(client: Client, mara: User, later: Job) -> None:
    later.move("claim", attempt=1)
    client.force_login(mara)
    prioritise(client, later, 1)
    assert Job.objects.get(pk=later.pk).priority == Job.Priority.NORMAL


@pytest.mark.parametrize(("name", "status"), [("ed", 403), ("vera", 403), ("otto", 404)])
def test_only_a_manager_may(
    client: Client, later: Job, name: str, status: int, request: pytest.FixtureRequest
) -> None:
    client.force_login(request.getfixturevalue(name))
    assert prioritise(client, later, 1).status_code == status  # type: ignore[attr-defined]
