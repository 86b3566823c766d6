"""An equal run that has finished: the form links to it, and the API returns it on request."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from dashboard.models import BaseModel, Dataset, TrainingRun, User
from tests.dashboard.conftest import publish
from tests.dashboard.training.test_training_run_create import URL, entered

RUNS = "/api/v1/runs"


@pytest.fixture
def form(client: Client, ed: User, dataset: Dataset, base_model: BaseModel) -> dict[str, Any]:
    client.force_login(ed)
    return entered(dataset, base_model)


@pytest.fixture
def finished(client: Client, form: dict[str, Any]) -> TrainingRun:
    client.post(URL, form)
    run = TrainingRun.objects.get()
    publish(run)
    return run


def test_form_links_to_the_finished_run(client: Client, form: dict[str, Any], finished: TrainingRun) -> None:
    answer = client.post(URL, form | {"idempotency_key": "", "name": "Another name"})
    assert (answer.status_code, answer.context["equal_run"]) == (409, finished)
    assert f'href="{finished.get_absolute_url()}"' in answer.content.decode()
    assert TrainingRun.objects.count() == 1


def test_it_is_trained_again_on_request(client: Client, form: dict[str, Any], finished: TrainingRun) -> None:
    client.post(URL, form | {"idempotency_key": "", "again": "1"})
    first, second = TrainingRun.objects.order_by("pk")
    assert first.spec_digest == second.spec_digest
    assert second.job is not None


@pytest.mark.parametrize("changed", [{"seed": "43"}, {"max_steps": "11"}, {"lora_dropout": "0.1"}])
def test_other_settings_start_a_run(
    client: Client, form: dict[str, Any], finished: TrainingRun, changed: dict[str, str]
) -> None:
    client.post(URL, form | {"idempotency_key": ""} | changed)
    assert TrainingRun.objects.count() == 2


def test_api_returns_the_finished_run_with_reuse(
    api: Client, dataset: Dataset, base_model: BaseModel
) -> None:
    body = {"dataset": dataset.pk, "base_model": base_model.pk, "target_module_config": "efficient"}
    first = api.post(RUNS, body, content_type="application/json")
    publish(TrainingRun.objects.get())
    again = api.post(RUNS, body | {"reuse": True}, content_type="application/json")
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json()["id"] == first.json()["id"]
    assert api.post(RUNS, body, content_type="application/json").status_code == 202
