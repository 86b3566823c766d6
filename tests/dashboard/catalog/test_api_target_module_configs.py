"""Target-module configs over the API, and the confirmations that runs on them need."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from dashboard.models import (
    BaseModel,
    Dataset,
    Project,
    Study,
    TargetModuleConfig,
    TrainingRun,
    User,
)
from tests.conftest import make_base_model

CONFIGS, RUNS, STUDIES = "/api/v1/target-module-configs", "/api/v1/runs", "/api/v1/studies"
HEAD = {"content_type": "application/json"}
LEARN = {"r": 4, "max_steps": 10, "max_length": 64}


@pytest.fixture
def body(base_model: BaseModel) -> dict[str, Any]:
    return {"name": "Ours", "base_model": base_model.pk, "target_modules": ["o_proj", "down_proj"]}


@pytest.fixture
def gappy(base_model: BaseModel) -> BaseModel:
    """The model with attention output only in the second of its two layers."""
    census = base_model.census or {}
    for group in census["groups"]:
        if group["role"] == "attn_out":
            group["layers"] = [1]
    BaseModel.objects.filter(pk=base_model.pk).update(census=census)
    return base_model


def refused(answer: Any, status: int, field: str | None = None) -> str:
    assert answer.status_code == status, answer.content
    error = answer.json()["error"]
    assert error["field"] == field
    return str(error["message"])


def test_a_config_is_created_with_its_matches(api: Client, body: dict[str, Any], ed: User) -> None:
    body |= {"layers_to_transform": [1], "rank_pattern": {"down_proj": 4}, "alpha_pattern": {"down_proj": 4}}
    answer = api.post(CONFIGS, {**body, "description": "Only the top."}, **HEAD)
    assert answer.status_code == 201, answer.content
    made = answer.json()
    assert (made["slug"], made["name"], made["version"]) == (None, "Ours", 1)
    assert [(one["role"], one["layers"]) for one in made["matched"]] == [("attn_out", [1]), ("mlp_down", [1])]
    assert made["resolved"] == {
        "target_modules": ["down_proj", "o_proj"],
        "layers_to_transform": [1],
        "rank_pattern": {"mlp.down_proj": 4},
        "alpha_pattern": {"mlp.down_proj": 4},
    }
    config = TargetModuleConfig.objects.get(pk=made["id"])
    assert (config.made_by, config.description) == (ed, "Only the top.")


def test_an_unmatched_name_is_refused_with_near_names(api: Client, body: dict[str, Any]) -> None:
    message = refused(
        api.post(CONFIGS, {**body, "target_modules": ["o_proj", "typo"]}, **HEAD), 422, "target_modules"
    )
    assert message.startswith("`typo` matches no layer of this model. Near names: `")
    assert not TargetModuleConfig.objects.filter(name="Ours").exists()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": [".*"]}, "target_modules"),
        ({"layers_to_transform": [-1]}, "layers_to_transform"),
        ({"rank_pattern": {"o_proj": 0}}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": 4}}, "target_modules"),
        ({"name": "Efficient"}, "name"),
        ({"description": "\0"}, "description"),
        ({"roles": ["attn_q"]}, "roles"),
    ],
)
def test_invalid_input_is_refused(
    api: Client, body: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    assert refused(api.post(CONFIGS, body | change, **HEAD), 422, field)


def test_an_existing_name_adds_a_version_and_runs_keep_theirs(
    api: Client, body: dict[str, Any], dataset: Dataset
) -> None:
    first = api.post(CONFIGS, body, **HEAD).json()
    started = api.post(RUNS, run_body(dataset, body["base_model"], first["id"]), **HEAD)
    second = api.post(CONFIGS, {**body, "target_modules": ["q_proj"]}, **HEAD).json()
    assert (first["version"], second["version"]) == (1, 2)
    listed = [one["id"] for one in api.get(CONFIGS, {"base_model": body["base_model"]}).json()["data"]]
    assert second["id"] in listed
    assert first["id"] not in listed
    assert TrainingRun.objects.get(pk=started.json()["id"]).target_module_config_id == first["id"]


def test_a_repeated_key_creates_one_config(api: Client, body: dict[str, Any]) -> None:
    answers = [api.post(CONFIGS, body, headers={"Idempotency-Key": "k1"}, **HEAD).json() for _ in range(2)]
    assert answers[0]["id"] == answers[1]["id"]


@pytest.mark.parametrize("changes", [{"name": "Another"}, {"target_modules": ["q_proj"]}])
def test_a_key_with_another_config_is_refused(
    api: Client, body: dict[str, Any], changes: dict[str, Any]
) -> None:
    first = api.post(CONFIGS, body, headers={"Idempotency-Key": "k1"}, **HEAD)
    assert first.status_code == 201
    refused(
        api.post(CONFIGS, body | changes, headers={"Idempotency-Key": "k1"}, **HEAD), 422, "Idempotency-Key"
    )


def test_a_model_of_another_project_is_refused(
    api: Client, body: dict[str, Any], other_project: Project
) -> None:
    foreign = make_base_model(other_project, "Theirs", "example/theirs")
    refused(api.post(CONFIGS, {**body, "base_model": foreign.pk}, **HEAD), 404, "base_model")


def run_body(dataset: Dataset, base_model: int, config: int | str) -> dict[str, Any]:
    return {
        "name": "Run",
        "dataset": dataset.pk,
        "base_model": base_model,
        "target_module_config": config,
        "hyperparameters": LEARN,
    }


def test_a_run_with_missing_layers_needs_a_confirmation(
    api: Client, dataset: Dataset, gappy: BaseModel, ed: User
) -> None:
    asked = run_body(dataset, gappy.pk, "efficient")
    assert api.post("/api/v1/forecast", asked, **HEAD).status_code == 200
    message = refused(api.post(RUNS, asked, **HEAD), 422, "confirmed")
    gap = "Attention output exists in 1 of 2 layers (1); the other layers get no adapter."
    assert message == f"Read this, and confirm it with `confirmed`: true. {gap}"
    answer = api.post(RUNS, {**asked, "confirmed": True}, **HEAD)
    run = TrainingRun.objects.get(pk=answer.json()["id"])
    assert (run.confirmations, run.confirmed_by) == ([gap], ed)


def test_an_unneeded_confirmation_is_not_stored(api: Client, dataset: Dataset, base_model: BaseModel) -> None:
    answer = api.post(RUNS, {**run_body(dataset, base_model.pk, "efficient"), "confirmed": True}, **HEAD)
    run = TrainingRun.objects.get(pk=answer.json()["id"])
    assert (run.confirmations, run.confirmed_by) == ([], None)


def test_a_study_with_missing_layers_needs_one_confirmation(
    api: Client, dataset: Dataset, gappy: BaseModel, ed: User
) -> None:
    arms = [{"target_module_config": slug, "hyperparameters": LEARN} for slug in ("efficient", "quality")]
    asked = {"dataset": dataset.pk, "base_model": gappy.pk, "arms": arms, "seeds": [1]}
    assert "1 of 2 layers" in refused(api.post(STUDIES, asked, **HEAD), 422, "confirmed")
    assert api.post(STUDIES, {**asked, "confirmed": True}, **HEAD).status_code == 202
    assert Study.objects.get().confirmed_by == ed
    assert all(run.confirmed_by == ed and run.confirmations for run in Study.objects.get().runs())
