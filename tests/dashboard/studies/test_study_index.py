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


def test_a_study_under_way_shows_how_many_runs_are_done(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    make_study(project, dataset, base_model)
    client.force_login(vera)
    page = client.get(URL).content.decode()
    assert "Placement" in page
    assert "0 of 6 runs done" in page


def test_a_finished_study_shows_its_sentence(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = conclude(make_study(project, dataset, base_model), ALIKE)
    client.force_login(vera)
    page = client.get(URL).content.decode()
    assert study.get_absolute_url() in page
    assert "quality" in page
    assert "runs done" not in page


@pytest.mark.parametrize("cursor", ["x", "-1", "99999999999999999999"])
def test_a_cursor_that_is_none_is_no_error(client: Client, vera: User, cursor: str) -> None:
    client.force_login(vera)
    assert client.get(URL, {"cursor": cursor}).status_code == 200


def test_more_finished_studies_cost_no_more_queries(
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
def test_more_studies_under_way_cost_no_more_queries(
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
