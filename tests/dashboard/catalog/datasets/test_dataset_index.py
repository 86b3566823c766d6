"""The list of datasets: the project's own, newest first, a page at a time."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries

from dashboard.models import Dataset, Project, TrainingRun, User
from tests.conftest import make_dataset


def test_texts(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    page = client.get(reverse("dataset-index")).content.decode()
    for words in ("Tickets", "Finished", "Prompt and completion", "1 run", ">20<"):
        assert words in page


def test_only_editors_can_add_datasets(client: Client, vera: User, ed: User) -> None:
    for user, may_add in ((vera, False), (ed, True)):
        client.force_login(user)
        page = client.get(reverse("dataset-index")).content.decode()
        assert [reverse(route) in page for route in ("dataset-sample", "dataset-create")] == [may_add] * 2


def test_datasets_of_other_projects_are_not_listed(client: Client, otto: User, dataset: Dataset) -> None:
    client.force_login(otto)
    assert dataset.name not in client.get(reverse("dataset-index")).content.decode()


def test_the_list_is_paginated(client: Client, ed: User, project: Project) -> None:
    for number in range(30):
        Dataset.objects.named(project, f"Set {number:02}", ed)
    client.force_login(ed)
    first = client.get(reverse("dataset-index"))
    second = client.get(reverse("dataset-index"), {"cursor": first.context["next"]})
    names = [row.name for response in (first, second) for row in response.context["datasets"]]
    assert names == [f"Set {number:02}" for number in reversed(range(30))]
    assert second.context["next"] is None


@pytest.mark.parametrize("cursor", ["x", "9" * 40, "²", "\x00"])
def test_an_invalid_cursor_shows_the_first_page(
    client: Client, ed: User, dataset: Dataset, cursor: str
) -> None:
    client.force_login(ed)
    response = client.get(reverse("dataset-index"), {"cursor": cursor})
    assert [row.pk for row in response.context["datasets"]] == [dataset.pk]


def test_queries_do_not_grow_with_the_datasets(
    client: Client, ed: User, project: Project, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(20):
        make_dataset(project, f"Set {number}", by=ed, ready=False)
    client.force_login(ed)
    with django_assert_max_num_queries(14):
        client.get(reverse("dataset-index"))
