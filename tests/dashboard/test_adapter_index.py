"""The list of adapters: what a row says, the filter by stage, and whose adapters are listed."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import DjangoAssertNumQueries

from dashboard.models import Adapter, BaseModel, Dataset, Project, User
from tests.conftest import make_run
from tests.dashboard.conftest import evaluate, publish


def page(client: Client, user: User, query: str = "") -> str:
    client.force_login(user)
    return client.get(reverse("adapter-index") + query).content.decode()


def test_a_row_says_what_it_is_and_what_came_out(client: Client, vera: User, adapter: Adapter) -> None:
    evaluate(adapter, 0.0, 0.61)
    text = page(client, vera)
    assert f'href="{adapter.get_absolute_url()}"' in text
    for words in ("Triage", "v1", "Draft", "Tiny", "0.0 %", "61.0 %", "4 kB"):
        assert words in text, words


def test_it_filters_by_stage(client: Client, vera: User, adapter: Adapter) -> None:
    adapter.enter("approved")
    assert "Triage" in page(client, vera, "?stage=approved")
    assert "No adapter has this stage" in page(client, vera, "?stage=retired")


@pytest.mark.parametrize("query", ["?stage=gone", "?cursor=x", "?cursor=99999999999999999999", "?stage=%00"])
def test_it_ignores_what_it_cannot_read(client: Client, vera: User, adapter: Adapter, query: str) -> None:
    assert "Triage" in page(client, vera, query)


def test_an_editor_without_adapters_is_shown_the_way(client: Client, ed: User) -> None:
    text = page(client, ed)
    assert "No adapters yet" in text
    assert reverse("training-run-create") in text


def test_it_lists_nobody_elses_adapters(client: Client, otto: User, adapter: Adapter) -> None:
    assert "Triage" not in page(client, otto)


def test_more_rows_need_no_more_queries(
    client: Client,
    vera: User,
    ed: User,
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    client.force_login(vera)
    for number in range(3):
        evaluate(publish(make_run(project, dataset, base_model, by=ed, name=f"Run {number}")), 0.1, 0.2)
    with django_assert_max_num_queries(16):
        assert client.get(reverse("adapter-index")).status_code == 200
