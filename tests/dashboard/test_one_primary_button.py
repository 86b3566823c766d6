"""Each list page has exactly one primary button."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Dataset, TrainingRun, User
from tests.dashboard.studies.factories import make_study

LISTS = ("dataset-index", "training-run-index", "study-index", "adapter-index", "compare", "home")


def primary_buttons(client: Client, route: str) -> int:
    page = client.get(reverse(route)).content.decode()
    return page.count("btn-primary")


@pytest.mark.parametrize("route", LISTS)
def test_empty_list_has_one_primary_button(client: Client, ed: User, route: str) -> None:
    client.force_login(ed)
    assert primary_buttons(client, route) == 1


@pytest.mark.parametrize("route", LISTS[:3])
def test_filled_list_has_one_primary_button(
    client: Client, ed: User, dataset: Dataset, run: TrainingRun, route: str
) -> None:
    make_study(run.project, dataset, run.base_model, by=ed)
    client.force_login(ed)
    assert primary_buttons(client, route) == 1


@pytest.mark.parametrize("route", LISTS)
def test_viewer_has_no_primary_button(client: Client, vera: User, route: str) -> None:
    client.force_login(vera)
    assert primary_buttons(client, route) == 0
