"""The list of studies."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from dashboard.models import BaseModel, Dataset, Project, User
from tests.dashboard.studies.factories import Table, conclude, make_study

URL = reverse("study-index")
ALIKE: Table = {
    "base": {0: [0, 1]},
    "efficient": {s: [1, 1] for s in (1, 2, 3)},
    "quality": {s: [1, 1] for s in (1, 2, 3)},
}


def test_list_shows_progress_or_verdict(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model)
    client.force_login(vera)
    assert "0 of 6 runs done" in client.get(URL).content.decode()
    conclude(study, ALIKE)
    page = client.get(URL).content.decode()
    assert study.get_absolute_url() in page
    assert "quality" in page
    assert "runs done" not in page


def test_number_of_queries_does_not_grow_with_finished_studies(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(vera)
    counts = []
    for _round in range(2):
        conclude(make_study(project, dataset, base_model), ALIKE)
        with CaptureQueriesContext(connection) as asked:
            client.get(URL)
        counts.append(len(asked))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("route", ["study-index", "home", "home-progress", "api:study-index"])
def test_number_of_queries_does_not_grow_with_running_studies(
    client: Client, ed: User, token: str, dataset: Dataset, base_model: BaseModel, route: str
) -> None:
    client.force_login(ed)
    caller = {"Authorization": f"Bearer {token}"} if route.startswith("api:") else {}
    # The first call of a token notes that it was used.
    client.get(reverse(route), headers=caller)
    counts = []
    for _round in range(2):
        for _study in range(2):
            make_study(dataset.project, dataset, base_model)
        with CaptureQueriesContext(connection) as asked:
            assert client.get(reverse(route), headers=caller).status_code == 200
        counts.append(len(asked))
    assert counts[0] == counts[1]
