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
    (_base_model, forecast), *_more = client.get(URL).context["rows"]
    return float(forecast.peak_memory_bytes["expected"])


def test_a_model_that_fits(client: Client, vera: User, base_model: BaseModel) -> None:
    BaseModel.objects.filter(pk=base_model.pk).update(license="apache-2.0")
    device(8_000_000_000)
    page = page_of(client, vera)
    for text in ("fits on CPU, 2 cores", "apache-2.0", "40,000"):
        assert text in page


def test_a_model_that_is_too_large(client: Client, vera: User, base_model: BaseModel) -> None:
    device(500_000_000)
    device(600_000_000, "CPU, 4 cores")
    assert "does not fit: the largest device has 600.0 MB (CPU, 4 cores)" in page_of(client, vera)


def test_a_model_that_only_just_fits(client: Client, vera: User, base_model: BaseModel) -> None:
    device(8_000_000_000)
    # The memory of the system, and 1 % more than the expected peak.
    WorkerNode.objects.update(memory_bytes=1_500_000_000 + int(1.01 * needed(client, vera)))
    assert "tight on CPU, 2 cores with" in page_of(client, vera)


def test_without_a_worker_the_fit_is_unknown(client: Client, vera: User, base_model: BaseModel) -> None:
    page = page_of(client, vera)
    assert "no worker is connected" in page
    assert "fits on" not in page


@pytest.mark.parametrize("census", [None, {"version": 0}])
def test_a_model_without_a_census_has_no_forecast(
    client: Client, vera: User, base_model: BaseModel, census: dict[str, int] | None
) -> None:
    device(8_000_000_000)
    BaseModel.objects.filter(pk=base_model.pk).update(census=census)
    assert "fits on" not in page_of(client, vera)


def test_a_model_without_the_default_modules_has_no_forecast(
    client: Client, vera: User, base_model: BaseModel
) -> None:
    device(8_000_000_000)
    census = base_model.census or {}
    census["groups"] = [group for group in census["groups"] if group["role"] != "attn_out"]
    BaseModel.objects.filter(pk=base_model.pk).update(census=census)
    assert "fits on" not in page_of(client, vera)


def test_queries_do_not_grow_with_the_models(
    client: Client, vera: User, project: Project, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    device(8_000_000_000)
    for number in range(12):
        make_base_model(project, f"Model {number}", f"example/model-{number}")
    client.force_login(vera)
    with django_assert_max_num_queries(14):
        client.get(URL)
