"""Launch, list and details of runs in the API."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from dashboard.models import (
    BaseModel,
    Dataset,
    Job,
    MetricSeries,
    Outbox,
    Project,
    TargetModuleConfig,
    TrainingRun,
    User,
    WorkerNode,
)
from tests.conftest import finish, make_base_model, make_dataset, make_run
from tests.dashboard.conftest import api_client
from tests.dashboard.refusals import refusal

RUNS = "/api/v1/runs"
RUN_KEYS = {
    "id",
    "tags",
    "note",
    "scores",
    "name",
    "reused_from",
    "state",
    "dataset",
    "validation_dataset",
    "base_model",
    "target_module_config",
    "hyperparameters",
    "step",
    "total_steps",
    "forecast",
    "adapter",
    "error",
    "resumable_from",
    "adjustments",
    "origin",
    "starts_at",
}


@pytest.fixture
def body(dataset: Dataset, base_model: BaseModel) -> dict[str, Any]:
    return {
        "dataset": dataset.pk,
        "base_model": base_model.pk,
        "target_module_config": "efficient",
        "hyperparameters": {"r": 4, "max_steps": 10, "max_length": 64},
    }


def post(api: Client, body: Any, **headers: str) -> Any:
    return api.post(RUNS, body, content_type="application/json", headers=headers)


def test_it_queues_a_run_and_answers_at_once(api: Client, body: dict[str, Any]) -> None:
    answer = post(api, body)
    assert answer.status_code == 202
    run = TrainingRun.objects.get()
    assert answer.json() == api.get(f"{RUNS}/{run.pk}").json()
    assert Outbox.objects.filter(job=run.job).count() == 1


def test_it_shows_every_key_with_resolved_values(api: Client, body: dict[str, Any]) -> None:
    run = post(api, body).json()
    assert set(run) == RUN_KEYS
    assert run["state"] == "queued"
    assert run["dataset"] == body["dataset"]
    assert run["base_model"] == body["base_model"]
    assert run["target_module_config"] == TargetModuleConfig.objects.get(slug="efficient").pk
    assert run["hyperparameters"]["lora_alpha"] == 8
    assert run["hyperparameters"]["learning_rate"] == 0.013
    assert (run["step"], run["total_steps"]) == (0, 10)
    assert run["forecast"]["trainable_parameters"] == 4 * 2 * (32 + 32)
    assert run["forecast"]["adapter_bytes"] > 4 * run["forecast"]["trainable_parameters"]
    assert run["adapter"] is None
    assert run["error"] is None
    assert (run["resumable_from"], run["adjustments"], run["starts_at"]) == (None, [], None)


def test_another_dataset_gives_the_validation_rows(
    api: Client, body: dict[str, Any], project: Project
) -> None:
    assert post(api, body).json()["validation_dataset"] is None
    other = make_dataset(project, "Checked by hand")
    run = post(api, {**body, "validation_dataset": other.pk}).json()
    assert (run["dataset"], run["validation_dataset"]) == (body["dataset"], other.pk)
    assert run["origin"]["validation_sha256"] == other.versions.get().sha256
    assert [row["validation_dataset"] for row in api.get(RUNS).json()["data"]] == [other.pk, None]


def test_a_run_without_a_forecast_has_null(api: Client, run: TrainingRun) -> None:
    TrainingRun.objects.filter(pk=run.pk).update(forecast={})
    assert api.get(f"{RUNS}/{run.pk}").json()["forecast"] is None


def test_it_returns_the_expected_start(api: Client, body: dict[str, Any]) -> None:
    WorkerNode.objects.register("gpu@host", queue="gpu", host="host", pid=7)
    run = post(api, body).json()
    assert timezone.now() - datetime.fromisoformat(run["starts_at"]) < timedelta(minutes=1)


def test_omitted_values_get_defaults(api: Client, dataset: Dataset, base_model: BaseModel) -> None:
    bundled = BaseModel.objects.ensure_bundled()
    finish(bundled.inspect())
    BaseModel.objects.filter(pk=bundled.pk).update(census=base_model.census)
    run = post(api, {"dataset": dataset.pk, "target_module_config": "balanced"}).json()
    assert run["base_model"] == bundled.pk
    assert run["name"] == "Tickets Balanced"
    assert run["hyperparameters"]["r"] == 16
    assert (run["hyperparameters"]["max_steps"], run["hyperparameters"]["learning_rate"]) == (6, 0.013)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"learning_rate": "auto", "length": "thorough"}, (0.013, 6, None)),
        ({"learning_rate": 0.001, "length": None}, (0.001, 6, None)),
        ({"max_steps": 3}, (0.013, 3, None)),
        ({"num_train_epochs": 2.5}, (0.013, None, 2.5)),
    ],
)
def test_automatic_settings_are_returned_as_numbers(
    api: Client, body: dict[str, Any], given: dict[str, Any], found: tuple[Any, ...]
) -> None:
    run = post(api, {**body, "hyperparameters": given}).json()
    names = ("learning_rate", "max_steps", "num_train_epochs")
    assert tuple(run["hyperparameters"][name] for name in names) == found
    assert TrainingRun.objects.get().spec["hyperparameters"] == run["hyperparameters"]


def test_a_config_can_be_named_by_id(api: Client, body: dict[str, Any]) -> None:
    pk = TargetModuleConfig.objects.get(slug="mlp").pk
    for config in (pk, str(pk)):
        assert post(api, {**body, "target_module_config": config}).json()["target_module_config"] == pk


def test_returned_hyperparameters_can_be_sent_again(api: Client, body: dict[str, Any]) -> None:
    first = post(api, body).json()
    again = post(api, {**body, "hyperparameters": first["hyperparameters"]})
    assert again.json()["hyperparameters"] == first["hyperparameters"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dataset": None}, "dataset"),
        ({"dataset": "1"}, "dataset"),
        ({"base_model": "tiny"}, "base_model"),
        ({"target_module_config": True}, "target_module_config"),
        ({"target_module_config": ["efficient"]}, "target_module_config"),
        ({"name": "x" * 121}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"project": 1}, "project"),
        ({"hyperparameters": 5}, "hyperparameters"),
        ({"hyperparameters": {"r": 0}}, "hyperparameters.r"),
        ({"hyperparameters": {"r": 10**400}}, "hyperparameters.r"),
        ({"hyperparameters": {"lora_dropout": -(10**400)}}, "hyperparameters.lora_dropout"),
        ({"hyperparameters": {"r": "8"}}, "hyperparameters.r"),
        ({"hyperparameters": {"r": True}}, "hyperparameters.r"),
        ({"hyperparameters": {"r": 1.5}}, "hyperparameters.r"),
        ({"hyperparameters": {"learning_rate": 1e9}}, "hyperparameters.learning_rate"),
        ({"hyperparameters": {"max_steps": 5, "num_train_epochs": 1}}, "hyperparameters.max_steps"),
        ({"hyperparameters": {"length": "quick", "max_steps": 5}}, "hyperparameters.length"),
        ({"hyperparameters": {"length": "endless"}}, "hyperparameters.length"),
        ({"hyperparameters": {"max_steps": "auto"}}, "hyperparameters.max_steps"),
        ({"hyperparameters": {"learning_rate": "high"}}, "hyperparameters.learning_rate"),
        ({"hyperparameters": {"max_length": 513}}, "hyperparameters.max_length"),
        ({"hyperparameters": {"rank": 8}}, "hyperparameters.rank"),
        ({"hyperparameters": {"lr_scheduler_type": "wave"}}, "hyperparameters.lr_scheduler_type"),
    ],
)
def test_it_refuses_bad_values_and_names_them(
    api: Client, body: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    error = refusal(post(api, {**body, **change}), 422)
    assert error["field"] == field
    assert error["message"]
    assert not TrainingRun.objects.exists()


@pytest.mark.parametrize("text", ["", "[]", "\xff", '{"dataset": NaN}', "[" * 100_000])
def test_it_refuses_a_body_that_is_no_object(api: Client, text: str) -> None:
    refusal(post(api, text), 422)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset", 10**30),
        ("base_model", 999_999),
        ("target_module_config", "best"),
        ("target_module_config", "a\0b"),
        ("target_module_config", "\ud800"),
        ("target_module_config", "9" * 5000),
    ],
)
def test_unknown_objects_are_not_found(api: Client, body: dict[str, Any], field: str, value: Any) -> None:
    assert refusal(post(api, {**body, field: value}), 404)["field"] == field


def test_it_hides_other_projects_objects_in_the_body(
    api: Client, body: dict[str, Any], other_project: Project
) -> None:
    theirs = make_dataset(other_project, "Theirs")
    base = make_base_model(other_project)
    config = TargetModuleConfig.objects.create(project=other_project, name="Theirs", roles=["attn_out"])
    named = TargetModuleConfig.objects.create(
        project=other_project, slug="theirs", name="X", roles=["attn_out"]
    )
    for change in (
        {"dataset": theirs.pk},
        {"validation_dataset": theirs.pk},
        {"base_model": base.pk},
        {"target_module_config": config.pk},
        {"target_module_config": named.slug},
    ):
        assert refusal(post(api, {**body, **change}), 404)["field"] == next(iter(change))


def test_it_refuses_what_is_not_ready(api: Client, body: dict[str, Any], project: Project) -> None:
    waiting = make_dataset(project, "Waiting", ready=False)
    for field in ("dataset", "validation_dataset"):
        assert refusal(post(api, {**body, field: waiting.pk}), 409)["field"] == field
    bundled = BaseModel.objects.ensure_bundled()
    assert refusal(post(api, {**body, "base_model": bundled.pk}), 409)["field"] == "base_model"


def test_it_refuses_a_preset_without_matching_modules(
    api: Client, body: dict[str, Any], project: Project
) -> None:
    config = TargetModuleConfig.objects.create(project=project, name="Router", roles=["router"])
    error = refusal(post(api, {**body, "target_module_config": config.pk}), 422)
    assert error["field"] == "target_module_config"


def test_limits_have_thousands_separators(api: Client, body: dict[str, Any]) -> None:
    error = refusal(post(api, {**body, "hyperparameters": {"max_steps": 10**7}}), 422)
    assert error["message"] == "`max_steps` is 10,000,000. It must lie between 1 and 1,000,000."


def test_a_repeated_key_gives_the_same_run(api: Client, body: dict[str, Any]) -> None:
    first = post(api, body, **{"Idempotency-Key": "once"})
    second = post(api, body, **{"Idempotency-Key": "once"})
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    assert Job.objects.filter(kind="train").count() == 1


def test_a_key_belongs_to_its_project(
    api: Client, body: dict[str, Any], other_project: Project, otto: User
) -> None:
    post(api, body, **{"Idempotency-Key": "once"})
    theirs = api_client(other_project, otto)
    dataset, base = make_dataset(other_project, "Theirs"), make_base_model(other_project)
    answer = post(
        theirs, {**body, "dataset": dataset.pk, "base_model": base.pk}, **{"Idempotency-Key": "once"}
    )
    assert answer.json()["dataset"] == dataset.pk


def test_a_key_of_another_kind_of_job_is_refused(api: Client, body: dict[str, Any], dataset: Dataset) -> None:
    Job.objects.filter(kind="import").update(idempotency_key="once")
    assert refusal(post(api, body, **{"Idempotency-Key": "once"}), 422)["field"] == "Idempotency-Key"


def test_a_key_with_another_body_is_refused(api: Client, body: dict[str, Any]) -> None:
    first = post(api, body, **{"Idempotency-Key": "once"})
    other = post(api, {**body, "name": "Another"}, **{"Idempotency-Key": "once"})
    assert refusal(other, 422)["field"] == "Idempotency-Key"
    assert post(api, body, **{"Idempotency-Key": "once"}).json()["id"] == first.json()["id"]


def test_a_refused_call_does_not_use_up_its_key(api: Client, body: dict[str, Any]) -> None:
    refusal(post(api, {**body, "dataset": 10**6}, **{"Idempotency-Key": "once"}), 404)
    assert post(api, body, **{"Idempotency-Key": "once"}).status_code == 202


def test_a_key_may_not_be_longer_than_200_letters(api: Client, body: dict[str, Any]) -> None:
    assert refusal(post(api, body, **{"Idempotency-Key": "k" * 201}), 422)["field"] == "Idempotency-Key"


def test_it_lists_the_projects_runs_newest_first(
    api: Client, run: TrainingRun, project: Project, dataset: Dataset, base_model: BaseModel,
    other_project: Project,
) -> None:  # fmt: skip
    later = make_run(project, dataset, base_model, name="Later")
    make_run(other_project, make_dataset(other_project, "Theirs"), make_base_model(other_project))
    page = api.get(RUNS).json()
    assert [one["id"] for one in page["data"]] == [later.pk, run.pk]
    assert page["next"] is None


def test_the_number_of_queries_does_not_grow(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:  # fmt: skip
    for _number in range(30):
        MetricSeries.objects.append(make_run(project, dataset, base_model), "train/loss", [(1, 2.0)])
    api.get(RUNS)
    with django_assert_num_queries(11):
        assert len(api.get(f"{RUNS}?limit=200").json()["data"]) == 30
