"""The list of datasets: the project's own, newest first, a page at a time."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries

from dashboard.models import Dataset, Project, TrainingRun, User
from tests.conftest import make_dataset


def test_it_shows_rows_shape_state_and_use(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    page = client.get(reverse("dataset-index")).content.decode()
    for words in ("Tickets", "Finished", "Prompt and completion", "1 run", ">20<"):
        assert words in page


def test_it_offers_the_sample_when_there_is_nothing(client: Client, ed: User) -> None:
    client.force_login(ed)
    assert reverse("dataset-sample") in client.get(reverse("dataset-index")).content.decode()


def test_it_offers_a_viewer_nothing_they_may_not_do(client: Client, vera: User) -> None:
    client.force_login(vera)
    page = client.get(reverse("dataset-index")).content.decode()
    assert reverse("dataset-sample") not in page
    assert reverse("dataset-create") not in page


def test_it_leaves_out_other_projects(client: Client, otto: User, dataset: Dataset) -> None:
    client.force_login(otto)
    assert dataset.name not in client.get(reverse("dataset-index")).content.decode()


def test_it_turns_pages(client: Client, ed: User, project: Project) -> None:
    for number in range(30):
        Dataset.objects.named(project, f"Set {number:02}", ed)
    client.force_login(ed)
    first = client.get(reverse("dataset-index"))
    second = client.get(reverse("dataset-index"), {"cursor": first.context["next"]})
    names = [row.name for response in (first, second) for row in response.context["datasets"]]
    assert names == [f"Set {number:02}" for number in reversed(range(30))]
    assert second.context["next"] is None


@pytest.mark.parametrize("cursor", ["", "x", "-1", "9" * 40, "²", "\x00"])
def test_a_broken_cursor_means_the_first_page(
    client: Client, ed: User, dataset: Dataset, cursor: str
) -> None:
    client.force_login(ed)
    response = client.get(reverse("dataset-index"), {"cursor": cursor})
    assert [row.pk for row in response.context["datasets"]] == [dataset.pk]


def test_more_rows_need_no_more_queries(
    client: Client, ed: User, project: Project, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(20):
        make_dataset(project, f"Set {number}", by=ed, ready=False)
    client.force_login(ed)
    with django_assert_max_num_queries(14):
        client.get(reverse("dataset-index"))
