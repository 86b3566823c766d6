"""A base model's page: its census, the presets on it, and its inspection."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, State, User, WorkerNode
from tests.conftest import finish, make_base_model


def page_of(client: Client, base_model: BaseModel) -> str:
    return client.get(reverse("base-model-detail", args=[base_model.pk])).content.decode()


def test_all_presets_have_their_size(client: Client, vera: User, base_model: BaseModel) -> None:
    client.force_login(vera)
    response = client.get(reverse("base-model-detail", args=[base_model.pk]))
    lines = {line["config"].slug: line for line in response.context["presets"]}
    assert list(lines) == ["efficient", "balanced", "query_value", "attention", "mlp", "quality"]
    # Two o_proj modules of 32 -> 32: 16 * (32 + 32) each.
    assert lines["efficient"]["parameters"] == 2048
    assert "2 of 2 layers, 2 modules" in response.content.decode()
    assert "model.layers.*.self_attn.o_proj" in response.content.decode()


def test_a_preset_without_a_match_has_a_reason(client: Client, vera: User, base_model: BaseModel) -> None:
    census = base_model.census
    assert census
    census["groups"] = [group for group in census["groups"] if group["role"] != "attn_out"]
    base_model.save()
    client.force_login(vera)
    assert "no layer that Graftworks knows as attention output" in page_of(client, base_model)


def test_an_outdated_census_asks_for_another_inspection(
    client: Client, vera: User, base_model: BaseModel
) -> None:
    base_model.census = {"version": 0}
    base_model.save()
    client.force_login(vera)
    assert "Inspect it again" in page_of(client, base_model)


def test_a_failure_shows_its_cause(client: Client, mara: User, base_model: BaseModel) -> None:
    job = base_model.inspect()
    finish(job, State.FAILED, error_code="bad_model", error_message="This model has only weights.bin.")
    client.force_login(mara)
    page = page_of(client, base_model)
    assert "This model has only weights.bin." in page
    assert reverse("base-model-inspect", args=[base_model.pk]) in page


def test_the_bundled_model_has_a_page_before_its_inspection(client: Client, vera: User) -> None:
    bundled = BaseModel.objects.ensure_bundled()
    client.force_login(vera)
    assert "has not been inspected yet" in page_of(client, bundled)


def test_the_list_shows_shared_models_and_those_of_the_project(
    client: Client, vera: User, otto: User
) -> None:
    BaseModel.objects.ensure_bundled()
    make_base_model(vera.projects().get(), "Ours", "a/ours")
    make_base_model(otto.projects().get(), "Theirs", "a/theirs")
    client.force_login(vera)
    page = client.get(reverse("base-model-index")).content.decode()
    assert "SmolLM2 135M Instruct" in page
    assert "Ours" in page
    assert "Theirs" not in page
    assert reverse("base-model-create") not in page


def test_progress_reloads_the_page_after_the_inspection(
    client: Client, vera: User, base_model: BaseModel
) -> None:
    client.force_login(vera)
    address = reverse("base-model-progress", args=[base_model.pk])
    assert client.get(address)["HX-Refresh"] == "true"
    base_model.inspect()
    assert "Position 1 in the queue" in client.get(address).content.decode()


@pytest.mark.parametrize("route", ["base-model-detail", "base-model-progress"])
def test_a_waiting_inspection_has_an_estimated_start(
    client: Client, vera: User, base_model: BaseModel, route: str
) -> None:
    base_model.inspect()
    WorkerNode.objects.register("cpu@host", queue="cpu", host="host", pid=1)
    client.force_login(vera)
    answer = client.get(reverse(route, args=[base_model.pk]))
    assert answer.context["start"]
    assert "Position 1" in answer.content.decode()


def test_texts_of_experts_and_towers(client: Client, vera: User, base_model: BaseModel) -> None:
    census = base_model.census
    assert census
    groups = [group for group in census["groups"] if not group["pattern"].endswith("down_proj")]
    experts = {"role": "expert_down", "scope": "routed_expert", "kind": "expert", "layers": [1], "experts": 4}
    tower = {"role": "attn_q", "scope": "vision", "kind": "linear", "layers": [0]}
    size = {"d_in": 64, "d_out": 32}
    census["groups"] = [
        *groups,
        {"pattern": "model.layers.*.mlp.experts.down_proj", **experts, **size},
        {"pattern": "vision.layers.*.self_attn.query", **tower, **size},
    ]
    base_model.save()
    client.force_login(vera)
    page = page_of(client, base_model)
    assert "mlp.experts.down_proj" in page
    assert "4 experts share r 16: each gets r 4 and lora_alpha 8." in page
    assert "MLP down exists in 1 of 2 layers (1); the other layers get no adapter." in page
    assert "Query (image or audio tower)" in page
