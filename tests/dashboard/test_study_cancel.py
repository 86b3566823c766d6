"""Stopping a study."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, Dataset, Project, Study, User
from tests.dashboard.studies import conclude, make_study


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Queued: two arms, two seeds."""
    return make_study(project, dataset, base_model, by=ed, seeds=[1, 2])


def test_it_stops_every_job(client: Client, ed: User, study: Study) -> None:
    client.force_login(ed)
    assert client.post(reverse("study-cancel", args=[study.pk]))["Location"] == study.get_absolute_url()
    assert set(study.jobs().values_list("state", flat=True)) == {"cancelled"}
    assert Study.objects.get(pk=study.pk).state == "cancelled"


def test_it_refuses_a_viewer(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    assert client.post(reverse("study-cancel", args=[study.pk])).status_code == 403
    assert Study.objects.get(pk=study.pk).state == "queued"


def test_it_hides_the_study_from_an_outsider(client: Client, otto: User, study: Study) -> None:
    client.force_login(otto)
    assert client.post(reverse("study-cancel", args=[study.pk])).status_code == 404


def test_one_that_had_ended_stays_as_it_is(client: Client, ed: User, study: Study) -> None:
    table = {"base": {0: [1]}, "efficient": {1: [1], 2: [1]}, "quality": {1: [1], 2: [1]}}
    conclude(study, table)  # type: ignore[arg-type]
    client.force_login(ed)
    page = client.post(reverse("study-cancel", args=[study.pk]), follow=True).content.decode()
    assert "nothing to stop" in page
    assert Study.objects.get(pk=study.pk).state == "succeeded"
