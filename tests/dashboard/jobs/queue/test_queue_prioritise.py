"""A manager changes the priority of a waiting job: high, normal or low."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Job, TrainingRun, User
from tests.conftest import make_run


def prioritise(client: Client, job: Job, priority: object) -> Any:
    return client.post(reverse("queue-prioritise", args=[job.pk]), {"priority": priority})


@pytest.fixture
def later(run: TrainingRun) -> Job:
    """A job behind the run's."""
    made = make_run(run.project, run.dataset_version.dataset, run.base_model, by=run.created_by, name="Later")
    assert made.job
    return made.job


def test_high_priority_moves_a_job_to_the_front(client: Client, mara: User, later: Job) -> None:
    client.force_login(mara)
    prioritise(client, later, 1)
    assert Job.objects.get(pk=later.pk).position() == 1
    assert later.events.get(event="prioritise").description == "mara@example.org changed its priority: High"


@pytest.mark.parametrize("priority", ["", "2", "high"])
def test_an_unknown_priority_is_refused(client: Client, mara: User, later: Job, priority: str) -> None:
    client.force_login(mara)
    address = reverse("queue-prioritise", args=[later.pk])
    page = client.post(address, {"priority": priority}, follow=True).content.decode()
    assert "Choose high, normal or low." in page
    assert Job.objects.get(pk=later.pk).priority == Job.Priority.NORMAL
