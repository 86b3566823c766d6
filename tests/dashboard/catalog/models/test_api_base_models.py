"""Base models and target-module configs over the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

from dashboard.models import BaseModel, Job, Project, State, TargetModuleConfig, User
from tests.conftest import finish, make_base_model
from tests.dashboard.conftest import api_client
from tests.dashboard.refusals import refusal
from workers.forecasting.adapter_size import adapter_bytes

MODELS = "/api/v1/base-models"
CONFIGS = "/api/v1/target-module-configs"
SLUGS = {"efficient", "balanced", "query_value", "attention", "mlp", "quality"}


@pytest.fixture
def manager(project: Project, mara: User) -> Client:
    """A client with a manager's token."""
    return api_client(project, mara)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A model folder that the operator put in place."""
    path = Path(settings.DATA_DIR) / "models" / "my-model"
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text("{}")
    return path.name


def post(api: Client, body: Any, path: str = "", **headers: str) -> Any:
    return api.post(f"{MODELS}{path}", body, content_type="application/json", headers=headers)


def test_the_bundled_model_is_listed_before_its_inspection(api: Client) -> None:
    bundled = BaseModel.objects.ensure_bundled()
    assert api.get(MODELS).json() == {
        "data": [
            {
                "id": bundled.pk,
                "name": "SmolLM2 135M Instruct",
                "hub_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
                "revision": None,
                "parameters": None,
                "state": "queued",
                "error": None,
            }
        ],
        "next": None,
    }


def test_an_inspected_model(api: Client, base_model: BaseModel) -> None:
    answer = api.get(f"{MODELS}/{base_model.pk}").json()
    assert (answer["state"], answer["parameters"]) == ("succeeded", 40_000)
    modules = api.get(f"{MODELS}/{base_model.pk}/modules").json()["data"]
    assert {"pattern": "lm_head", "role": "head", "scope": "decoder"}.items() <= modules[-1].items()


def test_a_failed_model_has_its_error(api: Client, base_model: BaseModel) -> None:
    finish(base_model.inspect(), State.FAILED, error_code="bad_model", error_message="No weights.")
    answer = api.get(f"{MODELS}/{base_model.pk}").json()
    assert (answer["state"], answer["error"]) == ("failed", {"code": "bad_model", "message": "No weights."})


def test_models_of_other_projects_are_not_found(api: Client, other_project: Project) -> None:
    theirs = make_base_model(other_project)
    assert theirs.pk not in [one["id"] for one in api.get(MODELS).json()["data"]]
    assert refusal(api.get(f"{CONFIGS}?base_model={theirs.pk}"), 404)["field"] == "base_model"


def test_a_hub_model_is_added_once_per_key(manager: Client) -> None:
    body = {"hub_id": "example/tiny", "revision": "main"}
    answers = [post(manager, body, **{"Idempotency-Key": "k"}) for _time in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["state"] == "queued"
    assert Job.objects.filter(kind="inspect").count() == 1


def test_a_repeated_key_finds_a_model_that_was_inspected_again(manager: Client, mara: User) -> None:
    key = {"Idempotency-Key": "k"}
    first = post(manager, {"hub_id": "example/tiny"}, **key).json()
    base_model = BaseModel.objects.get(pk=first["id"])
    assert base_model.job
    finish(base_model.job, State.FAILED, error_code="model_error", error_message="The hub does not answer.")
    BaseModel.objects.get(pk=base_model.pk).inspect(mara)
    answer = post(manager, {"hub_id": "example/tiny"}, **key)
    assert (answer.status_code, answer.json()["id"]) == (202, first["id"])
    assert BaseModel.objects.filter(hub_id="example/tiny").count() == 1


def test_a_folder_is_added(manager: Client, folder: str) -> None:
    body = {"folder": folder, "name": "Mine", "hub_id": "example/mine"}
    answer = post(manager, body)
    assert (answer.status_code, answer.json()["name"]) == (202, "Mine")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "hub_id"),
        ({"hub_id": 5}, "hub_id"),
        ({"hub_id": "../../etc"}, "hub_id"),
        ({"hub_id": "a/b", "revision": "../x"}, "revision"),
        ({"hub_id": "a/b", "folder": "../secret", "name": "x"}, "folder"),
        ({"hub_id": "a/b", "path": "/etc"}, "path"),
        ({"hub_id": "a/b", "name": "x" * 121}, "name"),
        ({"hub_id": "a/b", "name": "a\0b"}, "name"),
    ],
)
def test_invalid_input_is_refused(manager: Client, body: dict[str, Any], field: str) -> None:
    assert refusal(post(manager, body), 422)["field"] == field
    assert not Job.objects.filter(kind="inspect").exists()


def test_an_existing_model_is_refused(manager: Client, base_model: BaseModel) -> None:
    assert refusal(post(manager, {"hub_id": base_model.hub_id}), 422)["field"] == "hub_id"


def test_one_inspection_runs_at_a_time(manager: Client, base_model: BaseModel) -> None:
    for _time in range(2):
        answer = post(manager, {}, f"/{base_model.pk}/inspect")
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    assert Job.objects.filter(kind="inspect").count() == 2


def test_presets_have_their_size_on_a_model(api: Client, base_model: BaseModel) -> None:
    page = api.get(f"{CONFIGS}?base_model={base_model.pk}&r=8").json()
    lines = {line["slug"]: line for line in page["data"]}
    assert set(lines) == SLUGS
    efficient = lines["efficient"]
    assert efficient["trainable_parameters"] == 8 * 2 * (32 + 32)
    assert efficient["resolved"] == {"target_modules": ["o_proj"]}
    assert efficient["matched"] == [
        {
            "group": "model.layers.*.self_attn.o_proj",
            "role": "attn_out",
            "layers": [0, 1],
            "d_in": 32,
            "d_out": 32,
        }
    ]
    assert efficient["warnings"] == []
    matched = TargetModuleConfig.objects.get(slug="efficient").resolve(base_model).matched
    assert efficient["adapter_bytes"] == adapter_bytes(matched, 8)
    preset = api.get(f"{MODELS}/{base_model.pk}/presets?r=8").json()["data"][0]
    assert (preset["slug"], preset["target_modules"], preset["refusal"]) == ("efficient", ["o_proj"], None)
    assert preset["share"] == pytest.approx(8 * 2 * 64 / 40_000)


def test_a_custom_config_that_does_not_fit_has_no_size(
    api: Client, base_model: BaseModel, project: Project
) -> None:
    TargetModuleConfig.objects.create(project=project, name="Router", roles=["router"])
    newest = api.get(f"{CONFIGS}?base_model={base_model.pk}").json()["data"][0]
    assert (newest["slug"], newest["name"], newest["adapter_bytes"]) == (None, "Router", None)
    assert (newest["resolved"], newest["matched"]) == (None, [])
    assert "no layer that Graftworks knows as router" in newest["warnings"][0]


def test_the_bundled_model_is_the_default(api: Client, base_model: BaseModel) -> None:
    bundled = BaseModel.objects.ensure_bundled()
    assert refusal(api.get(CONFIGS), 409)["field"] == "base_model"
    finish(bundled.inspect())
    BaseModel.objects.filter(pk=bundled.pk).update(census=base_model.census)
    assert len(api.get(CONFIGS).json()["data"]) == 6


@pytest.mark.parametrize(
    ("query", "field"),
    [("r=0", "r"), ("r=513", "r"), ("r=x", "r"), ("base_model=x", "base_model"), ("rank=8", "rank")],
)
def test_invalid_parameters_are_refused(api: Client, base_model: BaseModel, query: str, field: str) -> None:
    wanted = "" if field == "base_model" else f"&base_model={base_model.pk}"
    assert refusal(api.get(f"{CONFIGS}?{query}{wanted}"), 422)["field"] == field
