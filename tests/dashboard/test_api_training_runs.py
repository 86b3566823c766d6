"""Runs over the API: start, list, look, stop, and what they leave behind."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from dashboard.models import (
    Adapter,
    ApiToken,
    BaseModel,
    Dataset,
    Evaluation,
    Job,
    MetricSeries,
    Outbox,
    Project,
    Role,
    State,
    TargetModuleConfig,
    TrainingRun,
    User,
    WorkerNode,
)
from tests.conftest import finish, make_base_model, make_dataset, make_run, make_user
from tests.dashboard.conftest import make_checkpoint

RUNS = "/api/v1/runs"
RUN_KEYS = {
    "id",
    "name",
    "state",
    "dataset",
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
    "starts_at",
}


@pytest.fixture
def api(token: str) -> Client:
    return Client(headers={"Authorization": f"Bearer {token}"})


@pytest.fixture
def training(run: TrainingRun) -> TrainingRun:
    """A run that a worker has trained for five steps."""
    assert run.job
    run.job.move("claim", attempt=1, worker="w")
    run.job.move("progress")
    run.job.advance(step=5)
    return run


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


def refusal(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.content
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"code", "message", "field"}
    return error


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
    assert run["hyperparameters"]["learning_rate"] == 2e-4
    assert (run["step"], run["total_steps"]) == (0, 10)
    assert run["forecast"]["trainable_parameters"] == 4 * 2 * (32 + 32)
    assert run["forecast"]["adapter_bytes"] > 4 * run["forecast"]["trainable_parameters"]
    assert run["adapter"] is None
    assert run["error"] is None
    assert (run["resumable_from"], run["adjustments"], run["starts_at"]) == (None, [], None)


def test_it_tells_when_a_waiting_run_starts(api: Client, body: dict[str, Any]) -> None:
    WorkerNode.objects.beat("gpu@host", queue="gpu", host="host", pid=7)
    run = post(api, body).json()
    assert timezone.now() - datetime.fromisoformat(run["starts_at"]) < timedelta(minutes=1)


def test_it_takes_the_bundled_model_and_defaults_where_left_out(
    api: Client, dataset: Dataset, base_model: BaseModel
) -> None:
    bundled = BaseModel.objects.ensure_bundled()
    finish(bundled.inspect())
    BaseModel.objects.filter(pk=bundled.pk).update(census=base_model.census)
    run = post(api, {"dataset": dataset.pk, "target_module_config": "balanced"}).json()
    assert run["base_model"] == bundled.pk
    assert run["name"] == "Tickets Balanced"
    assert run["hyperparameters"]["r"] == 16
    assert run["hyperparameters"]["max_steps"] == 100


@pytest.mark.parametrize("as_text", [True, False])
def test_it_takes_a_config_by_id(api: Client, body: dict[str, Any], as_text: bool) -> None:
    config = TargetModuleConfig.objects.get(slug="mlp")
    answer = post(api, {**body, "target_module_config": str(config.pk) if as_text else config.pk})
    assert answer.json()["target_module_config"] == config.pk


def test_its_hyperparameters_can_be_sent_again_as_they_were_shown(api: Client, body: dict[str, Any]) -> None:
    first = post(api, body).json()
    again = post(api, {**body, "hyperparameters": first["hyperparameters"]})
    assert again.json()["hyperparameters"] == first["hyperparameters"]


def test_it_counts_steps_of_epochs(api: Client, body: dict[str, Any]) -> None:
    hyper = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "max_length": 64}
    assert post(api, {**body, "hyperparameters": hyper}).json()["total_steps"] == 8


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dataset": None}, "dataset"),
        ({"dataset": "1"}, "dataset"),
        ({"dataset": True}, "dataset"),
        ({"dataset": 1.5}, "dataset"),
        ({"base_model": "tiny"}, "base_model"),
        ({"target_module_config": True}, "target_module_config"),
        ({"target_module_config": None}, "target_module_config"),
        ({"target_module_config": ["efficient"]}, "target_module_config"),
        ({"name": 5}, "name"),
        ({"name": "x" * 121}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"state": "succeeded"}, "state"),
        ({"project": 1}, "project"),
        ({"hyperparameters": 5}, "hyperparameters"),
        ({"hyperparameters": {"r": 0}}, "hyperparameters.r"),
        ({"hyperparameters": {"r": -1}}, "hyperparameters.r"),
        ({"hyperparameters": {"r": 10**30}}, "hyperparameters.r"),
        ({"hyperparameters": {"r": "8"}}, "hyperparameters.r"),
        ({"hyperparameters": {"r": True}}, "hyperparameters.r"),
        ({"hyperparameters": {"r": 1.5}}, "hyperparameters.r"),
        ({"hyperparameters": {"learning_rate": 1e9}}, "hyperparameters.learning_rate"),
        ({"hyperparameters": {"learning_rate": True}}, "hyperparameters.learning_rate"),
        ({"hyperparameters": {"learning_rate": "1e-3"}}, "hyperparameters.learning_rate"),
        ({"hyperparameters": {"lora_dropout": 1.0}}, "hyperparameters.lora_dropout"),
        ({"hyperparameters": {"max_steps": 0}}, "hyperparameters.max_steps"),
        ({"hyperparameters": {"max_steps": 5, "num_train_epochs": 1}}, "hyperparameters.max_steps"),
        ({"hyperparameters": {"max_length": 513}}, "hyperparameters.max_length"),
        ({"hyperparameters": {"seed": -1}}, "hyperparameters.seed"),
        ({"hyperparameters": {"rank": 8}}, "hyperparameters.rank"),
        ({"hyperparameters": {"lr_scheduler_type": "wave"}}, "hyperparameters.lr_scheduler_type"),
    ],
)
def test_it_refuses_bad_values_and_names_them(
    api: Client, body: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    error = refusal(post(api, {**body, **change}), 422)
    assert error["field"] == field
    assert field.rpartition(".")[2] in error["message"] or error["message"]
    assert not TrainingRun.objects.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\xff", '{"dataset": NaN}', "[" * 100_000])
def test_it_refuses_a_body_that_is_no_object(api: Client, text: str) -> None:
    refusal(post(api, text), 422)


def test_it_refuses_not_a_number(api: Client, body: dict[str, Any]) -> None:
    text = '{"dataset": %d, "target_module_config": "efficient", "base_model": %d, "hyperparameters": %s}'
    answer = post(api, text % (body["dataset"], body["base_model"], '{"learning_rate": NaN}'))
    assert refusal(answer, 422)["field"] == "hyperparameters.learning_rate"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset", 10**30),
        ("dataset", 0),
        ("base_model", 999_999),
        ("target_module_config", "best"),
        ("target_module_config", 999_999),
        ("target_module_config", "a\0b"),
        ("target_module_config", "9" * 40),
        ("target_module_config", "9" * 5000),
    ],
)
def test_it_knows_no_such_object(api: Client, body: dict[str, Any], field: str, value: Any) -> None:
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
        {"base_model": base.pk},
        {"target_module_config": config.pk},
        {"target_module_config": named.slug},
    ):
        assert refusal(post(api, {**body, **change}), 404)["field"] == next(iter(change))


def test_it_waits_for_the_dataset(api: Client, body: dict[str, Any], project: Project) -> None:
    waiting = make_dataset(project, "Waiting", ready=False)
    assert refusal(post(api, {**body, "dataset": waiting.pk}), 409)["field"] == "dataset"


def test_it_waits_for_the_base_model(api: Client, body: dict[str, Any]) -> None:
    bundled = BaseModel.objects.ensure_bundled()
    assert refusal(post(api, {**body, "base_model": bundled.pk}), 409)["field"] == "base_model"


def test_it_refuses_a_preset_that_the_model_cannot_have(
    api: Client, body: dict[str, Any], project: Project
) -> None:
    config = TargetModuleConfig.objects.create(project=project, name="Router", roles=["router"])
    error = refusal(post(api, {**body, "target_module_config": config.pk}), 422)
    assert error["field"] == "target_module_config"


@pytest.mark.parametrize("name", ["r", "seed", "learning_rate", "lora_dropout"])
@pytest.mark.parametrize("value", [10**400, -(10**400), 10**40])
def test_it_refuses_a_number_that_no_machine_holds(
    api: Client, body: dict[str, Any], name: str, value: int
) -> None:
    answer = post(api, {**body, "hyperparameters": {name: value}})
    assert refusal(answer, 422)["field"] == f"hyperparameters.{name}"


def test_it_says_limits_as_people_write_them(api: Client, body: dict[str, Any]) -> None:
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
    theirs = Client(headers={"Authorization": f"Bearer {ApiToken.issue(other_project, otto, 'x')[1]}"})
    dataset, base = make_dataset(other_project, "Theirs"), make_base_model(other_project)
    answer = post(
        theirs, {**body, "dataset": dataset.pk, "base_model": base.pk}, **{"Idempotency-Key": "once"}
    )
    assert answer.json()["dataset"] == dataset.pk


def test_a_key_used_for_something_else_is_refused(
    api: Client, body: dict[str, Any], dataset: Dataset
) -> None:
    Job.objects.filter(kind="import").update(idempotency_key="once")
    assert refusal(post(api, body, **{"Idempotency-Key": "once"}), 422)["field"] == "Idempotency-Key"


def test_a_key_stands_for_one_body(api: Client, body: dict[str, Any]) -> None:
    first = post(api, body, **{"Idempotency-Key": "once"})
    other = post(api, {**body, "name": "Another"}, **{"Idempotency-Key": "once"})
    assert refusal(other, 422)["field"] == "Idempotency-Key"
    assert post(api, body, **{"Idempotency-Key": "once"}).json()["id"] == first.json()["id"]


def test_a_key_of_a_refused_call_is_free_again(api: Client, body: dict[str, Any]) -> None:
    refusal(post(api, {**body, "dataset": 10**6}, **{"Idempotency-Key": "once"}), 404)
    assert post(api, body, **{"Idempotency-Key": "once"}).status_code == 202


def test_a_key_may_not_be_longer_than_200_letters(api: Client, body: dict[str, Any]) -> None:
    assert refusal(post(api, body, **{"Idempotency-Key": "k" * 201}), 422)["field"] == "Idempotency-Key"


def test_a_viewer_starts_nothing(body: dict[str, Any], project: Project, vera: User) -> None:
    api = Client(headers={"Authorization": f"Bearer {ApiToken.issue(project, vera, 'x')[1]}"})
    refusal(post(api, body), 403)
    refusal(post(api, {}), 403)


def test_a_reading_token_starts_nothing(body: dict[str, Any], project: Project, ed: User) -> None:
    secret = ApiToken.issue(project, ed, "x", scope=ApiToken.Scope.READ)[1]
    error = refusal(post(Client(headers={"Authorization": f"Bearer {secret}"}), body), 403)
    assert "read" in error["message"]


def test_it_lists_the_projects_runs_newest_first(
    api: Client, run: TrainingRun, project: Project, dataset: Dataset, base_model: BaseModel,
    other_project: Project,
) -> None:  # fmt: skip
    later = make_run(project, dataset, base_model, name="Later")
    make_run(other_project, make_dataset(other_project, "Theirs"), make_base_model(other_project))
    page = api.get(RUNS).json()
    assert [one["id"] for one in page["data"]] == [later.pk, run.pk]
    assert page["next"] is None


@pytest.mark.parametrize("rows", [10, 60])
def test_a_list_asks_the_database_a_fixed_number_of_times(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel, rows: int,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:  # fmt: skip
    for number in range(rows):
        MetricSeries.objects.append(
            make_run(project, dataset, base_model, name=f"{number}"), "train/loss", [(1, 2.0)]
        )
    api.get(RUNS)
    with django_assert_num_queries(9):
        assert len(api.get(f"{RUNS}?limit=200").json()["data"]) == rows


def test_it_hides_a_foreign_run(run: TrainingRun, other_project: Project, otto: User) -> None:
    api = Client(headers={"Authorization": f"Bearer {ApiToken.issue(other_project, otto, 'x')[1]}"})
    for path in (
        "",
        "/metrics?name=train/loss",
        "/evaluations",
        "/events",
        "/log",
        "/samples",
        "/metric-series",
    ):
        refusal(api.get(f"{RUNS}/{run.pk}{path}"), 404)
    refusal(api.post(f"{RUNS}/{run.pk}/cancel"), 404)
    refusal(api.post(f"{RUNS}/{run.pk}/resume"), 404)


def test_it_stops_a_waiting_run_at_once(api: Client, run: TrainingRun) -> None:
    answer = api.post(f"{RUNS}/{run.pk}/cancel")
    assert answer.status_code == 202
    assert answer.json()["state"] == "cancelled"
    assert answer.json() == api.get(f"{RUNS}/{run.pk}").json()


def test_it_asks_a_working_run_to_stop(api: Client, run: TrainingRun) -> None:
    assert run.job
    run.job.move("claim", worker="w")
    run.job.move("progress")
    assert api.post(f"{RUNS}/{run.pk}/cancel").json()["state"] == "cancelling"
    assert api.post(f"{RUNS}/{run.pk}/cancel").status_code == 202


def test_it_cannot_stop_what_has_ended(api: Client, run: TrainingRun) -> None:
    api.post(f"{RUNS}/{run.pk}/cancel")
    assert refusal(api.post(f"{RUNS}/{run.pk}/cancel"), 409)["code"] == "already_ended"


def test_a_repeated_stop_with_its_key_is_answered_again(api: Client, run: TrainingRun) -> None:
    for _time in range(2):
        answer = api.post(f"{RUNS}/{run.pk}/cancel", headers={"Idempotency-Key": "stop"})
        assert answer.status_code == 202
    refusal(api.post(f"{RUNS}/{run.pk}/cancel", headers={"Idempotency-Key": "other"}), 409)


def stop(api: Client, run: TrainingRun, body: object = None, **headers: str) -> Any:
    text = body if isinstance(body, str) else json.dumps(body)
    return api.post(f"{RUNS}/{run.pk}/cancel", text, content_type="application/json", headers=headers)


def test_a_key_that_comes_with_another_wish_stops_nothing_more(api: Client, training: TrainingRun) -> None:
    key = {"Idempotency-Key": "stop"}
    assert stop(api, training, {"keep": "checkpoint"}, **key).status_code == 202
    assert refusal(stop(api, training, {}, **key), 422)["field"] == "Idempotency-Key"
    assert Job.objects.get(pk=training.job_id).stop_wanted() == "park"


@pytest.mark.parametrize("body", ["", "{}", {"keep": None}])
def test_it_keeps_nothing_where_nothing_is_said(api: Client, training: TrainingRun, body: object) -> None:
    assert stop(api, training, body).status_code == 202
    assert Job.objects.get(pk=training.job_id).stop_wanted() == "cancel"


def test_it_stops_and_keeps_the_best(api: Client, training: TrainingRun) -> None:
    for _time in range(2):
        answer = stop(api, training, {"keep": "adapter"})
        assert (answer.status_code, answer.json()["state"]) == (202, "running")
    assert Job.objects.get(pk=training.job_id).stop_wanted() == "finish"


def test_it_stops_and_keeps_the_checkpoint(api: Client, training: TrainingRun) -> None:
    answer = stop(api, training, {"keep": "checkpoint"})
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")
    assert Job.objects.get(pk=training.job_id).stop_wanted() == "park"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"keep": "best"}, "keep"),
        ({"keep": ""}, "keep"),
        ({"keep": True}, "keep"),
        ({"keep": ["adapter"]}, "keep"),
        ({"kept": "adapter"}, "kept"),
        ([], None),
        ("adapter", None),
        ("{", None),
    ],
)
def test_it_refuses_to_keep_anything_else(
    api: Client, training: TrainingRun, body: object, field: str | None
) -> None:
    problem = refusal(stop(api, training, body), 422)
    assert problem["field"] == field
    assert problem["message"].endswith(".")
    assert Job.objects.get(pk=training.job_id).stop_wanted() == ""


def test_it_keeps_nothing_more_of_what_is_being_discarded(api: Client, training: TrainingRun) -> None:
    stop(api, training)
    problem = refusal(stop(api, training, {"keep": "checkpoint"}), 409)
    assert problem["code"] == "already_stopping"


def parked(run: TrainingRun) -> TrainingRun:
    """Stopped with its checkpoint of step 4 kept."""
    assert run.job
    make_checkpoint(run.job, step=4)
    run.job.request_cancel(keep="checkpoint")
    run.job.move("stopped")
    return run


def test_it_resumes_where_the_checkpoint_left_it(api: Client, training: TrainingRun) -> None:
    parked(training)
    address = f"{RUNS}/{training.pk}"
    assert api.get(address).json()["resumable_from"] == 4
    answer = api.post(f"{address}/resume")
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    assert answer.json() == api.get(address).json()
    assert answer.json()["resumable_from"] is None


def test_a_repeated_resume_with_its_key_is_answered_again(api: Client, training: TrainingRun) -> None:
    parked(training)
    address = f"{RUNS}/{training.pk}/resume"
    for _time in range(2):
        assert api.post(address, headers={"Idempotency-Key": "go on"}).status_code == 202
    refusal(api.post(address, headers={"Idempotency-Key": "other"}), 409)
    assert Outbox.objects.filter(job=training.job_id).count() == 2


def test_a_refused_resume_is_refused_again_with_its_key(api: Client, run: TrainingRun) -> None:
    for _time in range(2):
        answer = api.post(f"{RUNS}/{run.pk}/resume", headers={"Idempotency-Key": "go on"})
        assert refusal(answer, 409)["code"] == "not_resumable"


def test_it_says_why_it_cannot_resume(api: Client, training: TrainingRun) -> None:
    address = f"{RUNS}/{training.pk}/resume"
    assert "works already" in refusal(api.post(address), 409)["message"]
    assert training.job
    training.job.request_cancel()
    training.job.move("stopped")
    assert "no checkpoint" in refusal(api.post(address), 409)["message"]


def test_a_viewer_resumes_nothing(training: TrainingRun, project: Project, vera: User) -> None:
    parked(training)
    api = Client(headers={"Authorization": f"Bearer {ApiToken.issue(project, vera, 'x')[1]}"})
    refusal(api.post(f"{RUNS}/{training.pk}/resume"), 403)
    assert TrainingRun.objects.get().state == State.CANCELLED


def test_a_failed_run_says_why(api: Client, run: TrainingRun) -> None:
    assert run.job
    finish(run.job, State.FAILED, error_code="diverged", error_message="The loss grew.")
    answer = api.get(f"{RUNS}/{run.pk}").json()
    assert answer["state"] == "failed"
    assert answer["error"] == {"code": "diverged", "message": "The loss grew."}


def test_it_gives_a_curve_and_its_later_points(api: Client, run: TrainingRun) -> None:
    MetricSeries.objects.append(run, "train/loss", [(1, 2.5), (2, 2.0), (3, float("nan"))])
    points = api.get(f"{RUNS}/{run.pk}/metrics?name=train/loss").json()["points"]
    assert points == [[1, 2.5], [2, 2.0], [3, None]]
    later = api.get(f"{RUNS}/{run.pk}/metrics?name=train/loss&since=1").json()["points"]
    assert [step for step, _value in later] == [2, 3]
    assert api.get(f"{RUNS}/{run.pk}").json()["step"] == 3
    names = [one["name"] for one in api.get(f"{RUNS}/{run.pk}/metric-series").json()["data"]]
    assert names == ["train/loss"]


def test_a_known_curve_is_empty_before_its_first_point(api: Client, run: TrainingRun) -> None:
    assert api.get(f"{RUNS}/{run.pk}/metrics?name=validation/loss").json()["points"] == []


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?name=train/fun",
        "?name=train%00loss",
        "?name=train/loss&since=x",
        "?name=train/loss&since=99999999999999999999",
        "?name=train/loss&x=1",
    ],
)
def test_it_refuses_a_curve_that_can_never_be(api: Client, run: TrainingRun, query: str) -> None:
    refusal(api.get(f"{RUNS}/{run.pk}/metrics{query}"), 422)


def publish(run: TrainingRun) -> Adapter:
    return Adapter.objects.publish(run, "folder", {"adapter_model.safetensors": "ef" * 32}, 1234)


def test_it_names_its_adapter(api: Client, run: TrainingRun) -> None:
    adapter = publish(run)
    answer = api.get(f"{RUNS}/{run.pk}").json()
    assert answer["adapter"] == {"id": adapter.pk, "name": "Triage", "version": 1}


def test_it_shows_evaluations_and_samples(api: Client, run: TrainingRun) -> None:
    job = Evaluation.objects.submit(publish(run), None)
    waiting = api.get(f"{RUNS}/{run.pk}/evaluations").json()
    assert {one["subject"] for one in waiting["data"]} == {"base", "adapter"}
    assert {one["state"] for one in waiting["data"]} == {"queued"}
    for evaluation in run.evaluations.all():
        item = {"row": 3, "prompt": "p", "expected": "e", "output": evaluation.subject, "scores": {}}
        evaluation.record_result(1, {"loss": 0.5, "exact_match": 1.0}, [item])
    finish(job)
    shown = api.get(f"{RUNS}/{run.pk}/evaluations").json()["data"][0]
    assert set(shown) == {
        "id",
        "subject",
        "split",
        "rows",
        "state",
        "metrics",
        "general_questions",
        "forgetting",
        "error",
    }
    assert (shown["state"], shown["rows"], shown["metrics"]["exact_match"]) == ("succeeded", 1, 1.0)
    sample = api.get(f"{RUNS}/{run.pk}/samples").json()["data"][0]
    assert (sample["row"], sample["base"], sample["adapter"]) == (3, "base", "adapter")


def test_it_tells_what_happened_and_how_the_log_ends(api: Client, run: TrainingRun) -> None:
    events = api.get(f"{RUNS}/{run.pk}/events").json()["data"]
    assert [one["event"] for one in events] == ["submit"]
    assert api.get(f"{RUNS}/{run.pk}/log").json() == {"text": ""}


def test_someone_who_has_left_the_project_sees_nothing(run: TrainingRun, project: Project) -> None:
    gone = make_user("gone@example.org", project, Role.EDITOR)
    api = Client(headers={"Authorization": f"Bearer {ApiToken.issue(project, gone, 'x')[1]}"})
    gone.memberships.all().delete()
    assert api.get(RUNS).json()["data"] == []
    refusal(api.get(f"{RUNS}/{run.pk}"), 404)


def test_it_looks_for_no_slug_that_cannot_be_written(api: Client, body: dict[str, Any]) -> None:
    answer = post(api, {**body, "target_module_config": "\ud800"})
    assert refusal(answer, 404)["field"] == "target_module_config"
