"""The list of base models: parameters, licence, and whether a fine-tune fits on a device that is here."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import DjangoAssertNumQueries

from dashboard.models import BaseModel, Project, User, WorkerNode
from tests.conftest import make_base_model

URL = reverse("base-model-index")


def page_of(client: Client, user: User) -> str:
    client.force_login(user)
    return " ".join(client.get(URL).content.decode().split())


def device(memory_bytes: int, name: str = "CPU, 2 cores") -> None:
    WorkerNode.objects.create(
        name=f"{name}@here", queue="gpu", host="here", pid=1, device=name, memory_bytes=memory_bytes
    )


def needed(client: Client, user: User) -> float:
    client.force_login(user)
    (_base_model, outlook), *_more = client.get(URL).context["rows"]
    return float(outlook.peak_memory_bytes["expected"])


def test_it_shows_parameters_and_licence(client: Client, vera: User, base_model: BaseModel) -> None:
    BaseModel.objects.filter(pk=base_model.pk).update(license="apache-2.0")
    page = page_of(client, vera)
    assert "apache-2.0" in page
    assert "40,000" in page


def test_it_says_on_which_device_a_fine_tune_fits(client: Client, vera: User, base_model: BaseModel) -> None:
    device(8_000_000_000)
    assert "fits on CPU, 2 cores" in page_of(client, vera)


def test_it_says_that_a_model_is_too_large_for_here(
    client: Client, vera: User, base_model: BaseModel
) -> None:
    device(500_000_000)
    device(600_000_000, "CPU, 4 cores")
    assert "does not fit: the largest device has 600.0 MB (CPU, 4 cores)" in page_of(client, vera)


def test_it_calls_tight_what_only_just_fits(client: Client, vera: User, base_model: BaseModel) -> None:
    device(8_000_000_000)
    # What the system keeps for itself, and a little more than what is expected.
    WorkerNode.objects.update(memory_bytes=1_500_000_000 + int(1.01 * needed(client, vera)))
    assert "tight on CPU, 2 cores with" in page_of(client, vera)


def test_without_a_worker_it_does_not_guess(client: Client, vera: User, base_model: BaseModel) -> None:
    page = page_of(client, vera)
    assert "no worker is connected" in page
    assert "fits on" not in page


@pytest.mark.parametrize("census", [None, {"version": 0}])
def test_a_model_that_is_not_counted_has_no_number(
    client: Client, vera: User, base_model: BaseModel, census: dict[str, int] | None
) -> None:
    device(8_000_000_000)
    BaseModel.objects.filter(pk=base_model.pk).update(census=census)
    assert "fits on" not in page_of(client, vera)


def test_a_model_on_which_the_default_reaches_nothing_has_no_number(
    client: Client, vera: User, base_model: BaseModel
) -> None:
    device(8_000_000_000)
    census = base_model.census or {}
    census["groups"] = [group for group in census["groups"] if group["role"] != "attn_out"]
    BaseModel.objects.filter(pk=base_model.pk).update(census=census)
    assert "fits on" not in page_of(client, vera)


def test_an_empty_list_is_a_page_too(client: Client, vera: User) -> None:
    BaseModel.objects.all().delete()
    assert "No base models yet" in page_of(client, vera)


def test_more_models_cost_no_more_queries(
    client: Client, vera: User, project: Project, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    device(8_000_000_000)
    for number in range(12):
        make_base_model(project, f"Model {number}", f"example/model-{number}")
    client.force_login(vera)
    with django_assert_max_num_queries(14):
        client.get(URL)
