"""Studies over the API: launch, refusals, schema, cancel, added seeds and export."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from dashboard.api.studies import ExportOut, StudyOut
from dashboard.models import BaseModel, Dataset, Project, State, Study, User
from tests.conftest import finish
from tests.dashboard.conftest import make_checkpoint
from tests.dashboard.studies.factories import Table, conclude, make_study, score_first_seed

STUDIES = "/api/v1/studies"
HEAD = {"content_type": "application/json"}


@pytest.fixture
def body(dataset: Dataset, base_model: BaseModel) -> dict[str, Any]:
    learn = {"r": 4, "max_steps": 10, "max_length": 64}
    return {
        "name": "Placement",
        "dataset": dataset.pk,
        "base_model": base_model.pk,
        "arms": [
            {"target_module_config": "efficient", "hyperparameters": learn},
            {"target_module_config": "quality", "hyperparameters": learn},
        ],
        "seeds": [1, 2],
        "budget": "equal-rank",
        "metric": "exact_match",
    }


def worked_example() -> Table:
    """Return hand-written scores of twenty items, two arms and two seeds."""
    return {
        "base": {0: [1, 0, 0, 0, 0] * 4},
        "efficient": {1: [1, 1, 1, 0, 0] * 4, 2: [1, 1, 0, 0, 1] * 4},
        "quality": {1: [1, 1, 1, 1, 0] * 4, 2: [1, 1, 1, 0, 0] * 4},
    }


def refused(answer: Any, status: int, field: str | None = None) -> str:
    assert answer.status_code == status, answer.content
    error = answer.json()["error"]
    assert error["field"] == field
    return str(error["message"])


def test_one_job_per_seed_is_queued(api: Client, body: dict[str, Any]) -> None:
    answer = api.post(STUDIES, body, **HEAD)
    assert answer.status_code == 202
    study = answer.json()
    assert (study["state"], study["reference"], study["verdict"]) == ("queued", "quality", None)
    assert [arm["name"] for arm in study["arms"]] == ["efficient", "quality"], "a name defaults to the slug"
    assert [len(arm["runs"]) for arm in study["arms"]] == [2, 2]
    assert study["arms"][0]["trainable_parameters"] < study["arms"][1]["trainable_parameters"]
    assert study["base"] == {"metric": None}
    assert api.get(f"{STUDIES}/{study['id']}").json() == study
    assert api.get(STUDIES).json()["data"] == [study]


def test_seeds_and_test_rows_have_the_defaults_of_the_form(api: Client, body: dict[str, Any]) -> None:
    del body["seeds"]
    assert api.post(STUDIES, body, **HEAD).json()["seeds"] == [1, 2, 3, 4, 5]
    assert Study.objects.get().test_rows == 1000


def test_repeated_idempotency_key_makes_one_study(api: Client, body: dict[str, Any]) -> None:
    first, second = (api.post(STUDIES, body, headers={"Idempotency-Key": "k"}, **HEAD) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert Study.objects.count() == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"arms": []},
        {"arms": {}},
        {"seeds": []},
        {"seeds": [1, 1]},
        {"seeds": [-1]},
        {"seeds": [10**400]},
        {"seeds": [True]},
        {"dataset": "1"},
        {"metric": "beauty"},
        {"reference": "nobody"},
        {"margin": -0.1},
        {"margin": True},
        {"budget": "equal-luck"},
        {"learning_rates": [1e-3, 1e-3]},
        {"learning_rates": [1e-3, 7.0]},
        {"test_rows": 0},
        {"name": "x" * 121},
        {"surprise": 1},
    ],
)
def test_invalid_fields_are_refused_by_name(
    api: Client, body: dict[str, Any], changes: dict[str, Any]
) -> None:
    answer = api.post(STUDIES, body | changes, **HEAD)
    assert answer.status_code == 422, answer.content
    assert answer.json()["error"]["field"].split(".")[0] == next(iter(changes))
    assert Study.objects.count() == 0


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"hyperparameters": {"r": 0}}, 422, "arms.1.hyperparameters.r"),
        ({"target_module_config": "made-up"}, 404, "arms.1.target_module_config"),
        # Another length than the first arm, and the name of the first arm.
        ({"hyperparameters": {"r": 4, "max_steps": 20, "max_length": 64}}, 422, "arms"),
        ({"target_module_config": "efficient"}, 422, "arms"),
    ],
)
def test_invalid_arms_are_refused_by_position(
    api: Client, body: dict[str, Any], changes: dict[str, Any], status: int, field: str
) -> None:
    body["arms"][1] |= changes
    refused(api.post(STUDIES, body, **HEAD), status, field)


def test_reference_is_required_without_a_quality_arm(api: Client, body: dict[str, Any]) -> None:
    body["arms"][1]["target_module_config"] = "mlp"
    refused(api.post(STUDIES, body, **HEAD), 422, "reference")
    assert api.post(STUDIES, body | {"reference": "mlp"}, **HEAD).status_code == 202


def test_equal_parameters_change_the_ranks(api: Client, body: dict[str, Any]) -> None:
    study = api.post(STUDIES, body | {"budget": "equal-parameters"}, **HEAD).json()
    small, large = (arm["trainable_parameters"] for arm in study["arms"])
    assert abs(small / large - 1) < 0.05


def test_export_contains_no_paths(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model)
    text = api.get(f"{STUDIES}/{study.pk}/export").content.decode()
    assert "/tmp" not in text  # noqa: S108 - looked for, not used
    assert '"path"' not in text


def test_cancel_stops_every_job(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model)
    answer = api.post(f"{STUDIES}/{study.pk}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    assert set(study.jobs().values_list("state", flat=True)) == {"cancelled"}
    assert "cancelled" in refused(api.post(f"{STUDIES}/{study.pk}/cancel"), 409)


def test_finished_study_takes_seeds(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = conclude(make_study(project, dataset, base_model, seeds=[1, 2]), worked_example())
    answer = api.post(f"{STUDIES}/{study.pk}/seeds", {"seeds": [3]}, **HEAD)
    assert (answer.status_code, answer.json()["state"], answer.json()["seeds"]) == (202, "running", [1, 2, 3])
    assert answer.json()["verdict"] is None
    (addition,) = answer.json()["additions"]
    assert (addition["seeds"], addition["after_result"]) == ([3], True)
    assert refused(api.post(f"{STUDIES}/{study.pk}/seeds", {"seeds": [3]}, **HEAD), 422, "seeds")


def test_cancelled_study_takes_no_seeds(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model)
    api.post(f"{STUDIES}/{study.pk}/cancel")
    answer = api.post(f"{STUDIES}/{study.pk}/seeds", {"seeds": [9]}, **HEAD)
    refused(answer, 409)
    assert answer.json()["error"]["code"] == "not_extendable"


def test_repeated_idempotency_key_adds_seeds_once(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = conclude(make_study(project, dataset, base_model, seeds=[1, 2]), worked_example())
    address, key = f"{STUDIES}/{study.pk}/seeds", {"Idempotency-Key": "k"}
    for _call in range(2):
        answer = api.post(address, {"seeds": [3]}, headers=key, **HEAD)
        assert (answer.status_code, answer.json()["seeds"]) == (202, [1, 2, 3])
    refused(api.post(address, {"seeds": [4]}, headers=key, **HEAD), 422, "Idempotency-Key")
    assert len(Study.objects.get(pk=study.pk).additions) == 1


def test_repeated_cancel_key_does_not_cancel_a_resumed_study(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1, 2])
    address, key = f"{STUDIES}/{study.pk}/cancel", {"Idempotency-Key": "k"}
    failed = study.jobs().earliest("pk")
    make_checkpoint(failed, step=4)
    finish(failed, State.FAILED, error_code="disk_full", error_message="The disk is full.")
    assert api.post(address, headers=key).json()["state"] == "cancelled"
    failed.training_runs.earliest("pk").resume(ed)
    again = api.post(address, headers=key)
    assert (again.status_code, again.json()["state"]) == (202, "running")


def test_pattern_belongs_to_the_metric_regex(api: Client, body: dict[str, Any]) -> None:
    assert refused(api.post(STUDIES, body | {"metric": "regex"}, **HEAD), 422, "pattern")
    assert refused(api.post(STUDIES, body | {"metric": "regex", "pattern": "("}, **HEAD), 422, "pattern")
    assert refused(api.post(STUDIES, body | {"pattern": "a"}, **HEAD), 422, "pattern")
    study = api.post(STUDIES, body | {"metric": "regex", "pattern": r"total: (\d+)"}, **HEAD).json()
    assert (study["metric"], study["pattern"]) == ("regex", r"total: (\d+)")


def test_text_without_answers_allows_only_the_loss(
    api: Client, body: dict[str, Any], dataset: Dataset
) -> None:
    version = dataset.versions.get()
    version.report = {**version.report, "answers": "none"}
    version.save()
    assert "plain text" in refused(api.post(STUDIES, body, **HEAD), 422, "metric")
    assert api.post(STUDIES, {**body, "metric": "loss"}, **HEAD).status_code == 202


STUDY_FIELDS = {"id", "name", "state", "metric", "margin", "arms", "base", "comparisons", "verdict", "error"}
ARM_FIELDS = {
    "name",
    "trainable_parameters",
    "adapter_bytes",
    "seconds",
    "peak_memory_bytes",
    "runs",
    "error",
}
COMPARISON_FIELDS = {"arm", "reference", "difference", "low", "high", "p_adjusted", "outcome"}


def test_schema_before_and_after_the_end(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1, 2])
    before = api.get(f"{STUDIES}/{study.pk}").json()
    assert before.keys() >= STUDY_FIELDS
    assert (before["comparisons"], before["verdict"], before["error"]) == ([], None, None)
    for arm in before["arms"]:
        assert arm.keys() >= {*ARM_FIELDS, "metric"}
        assert (arm["seconds"], arm["peak_memory_bytes"], arm["error"], arm["metric"]) == (None,) * 4
    conclude(study, worked_example())
    after = api.get(f"{STUDIES}/{study.pk}").json()
    assert after["state"] == "succeeded"
    for arm in after["arms"]:
        assert [type(arm[name]) for name in ("trainable_parameters", "adapter_bytes", "runs")] == [
            int,
            int,
            list,
        ]
        assert (arm["seconds"], arm["peak_memory_bytes"], len(arm["runs"])) == (12.0, 5e8, 2)
        assert arm["metric"].keys() == after["base"]["metric"].keys() == {"mean", "low", "high"}
        assert arm["metric"]["low"] < arm["metric"]["mean"] < arm["metric"]["high"]
    (comparison,) = after["comparisons"]
    assert comparison.keys() >= COMPARISON_FIELDS
    assert (comparison["arm"], comparison["reference"]) == ("efficient", "quality")
    assert isinstance(after["verdict"], str)


def test_the_list_answers_as_the_detail_before_and_after_added_seeds(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = conclude(make_study(project, dataset, base_model, by=ed, seeds=[1, 2]), worked_example())
    address = f"{STUDIES}/{study.pk}"
    ended = api.get(STUDIES).json()["data"][0]
    assert ended == api.get(address).json() == StudyOut(**ended).model_dump(mode="json")
    api.post(f"{address}/seeds", {"seeds": [3]}, **HEAD)
    going_on = api.get(STUDIES).json()["data"][0]
    assert going_on == api.get(address).json()
    assert (going_on["state"], going_on["verdict"]) != (ended["state"], ended["verdict"])
    table = {
        arm: {0: [1] * 20} if arm == "base" else dict.fromkeys((1, 2, 3), [1] * 20)
        for arm in worked_example()
    }
    conclude(Study.objects.get(pk=study.pk), table)
    again = api.get(STUDIES).json()["data"][0]
    assert again["additions"]
    assert again == StudyOut(**again).model_dump(mode="json")


def test_missing_and_null_fields_have_defaults(api: Client, body: dict[str, Any]) -> None:
    optional = ("name", "base_model", "metric", "reference", "margin", "learning_rates")
    left_out = {name: value for name, value in body.items() if name not in optional}
    for asked in (left_out, left_out | dict.fromkeys(optional)):
        asked["arms"] = [{**arm, "name": None} for arm in body["arms"]] if "name" in asked else body["arms"]
        answer = api.post(STUDIES, asked | {"base_model": body["base_model"]}, **HEAD)
        assert answer.status_code == 202, answer.content
        study = answer.json()
        assert (study["name"], study["metric"]) == ("Study of Tickets", "token_f1")
        assert (study["reference"], study["margin"]) == ("quality", 0.03)


def test_learning_rates_default_to_those_of_the_arms(api: Client, body: dict[str, Any]) -> None:
    for arm, rate in zip(body["arms"], (1e-3, 5e-4), strict=True):
        arm["hyperparameters"] = {**arm["hyperparameters"], "learning_rate": rate}
    study = api.post(STUDIES, body, **HEAD).json()
    assert [arm["learning_rate"] for arm in study["arms"]] == [1e-3, 5e-4]
    learned = [
        one["spec"]["hyperparameters"]
        for one in api.get(f"{STUDIES}/{study['id']}/export").json()["settings"]
    ]
    assert {(one["learning_rate"], one["seed"]) for one in learned} == {
        (rate, seed) for rate in (1e-3, 5e-4) for seed in (1, 2)
    }
    one_rate = api.post(STUDIES, body | {"learning_rates": [7e-4]}, **HEAD).json()
    assert [arm["learning_rate"] for arm in one_rate["arms"]] == [7e-4, 7e-4]


def test_margin_has_the_unit_of_the_metric(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    """Efficient is 10 points behind; a margin of 0.4, which is 40 points, makes it as good."""
    scores = {"efficient": [0.5] * 40, "quality": [0.6] * 40, "base": [0.1] * 40}
    table = {name: dict.fromkeys((1, 2, 3), values) for name, values in scores.items()}
    for margin, outcome in ((0.4, "not_inferior"), (0.01, "inferior")):
        study = conclude(make_study(project, dataset, base_model, margin=margin), table)
        (one,) = api.get(f"{STUDIES}/{study.pk}").json()["comparisons"]
        assert one["outcome"] == outcome


def test_lower_loss_gives_a_positive_difference(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    scores = {"efficient": [0.5, 0.7] * 20, "quality": [1.0, 1.1] * 20, "base": [2.0] * 40}
    table = {name: dict.fromkeys((1, 2, 3), values) for name, values in scores.items()}
    study = conclude(make_study(project, dataset, base_model, metric="loss"), table)
    shown = api.get(f"{STUDIES}/{study.pk}").json()
    (one,) = shown["comparisons"]
    assert one["difference"] == pytest.approx(0.45)
    assert (one["low"] > 0, one["outcome"]) == (True, "better")
    assert shown["arms"][0]["metric"]["mean"] == pytest.approx(0.6), "an arm's own value stays a loss"


def test_export_has_exactly_the_documented_fields(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1, 2])
    going_on = api.get(f"{STUDIES}/{study.pk}/export").json()
    assert going_on == ExportOut(**going_on).model_dump(mode="json")
    conclude(study, worked_example())
    ended = api.get(f"{STUDIES}/{study.pk}/export").json()
    assert ended["scores"]
    assert ended == ExportOut(**ended).model_dump(mode="json")


def test_export_has_no_scores_before_the_end(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = score_first_seed(make_study(project, dataset, base_model, seeds=[1, 2]), worked_example())
    early = api.get(f"{STUDIES}/{study.pk}/export")
    assert (early.status_code, early.json()["scores"]) == (200, [])
    assert len(early.json()["settings"]) == 4
    conclude(study, worked_example())
    assert len(api.get(f"{STUDIES}/{study.pk}/export").json()["scores"]) == 20 + 2 * 2 * 20


def test_failed_study_has_an_error(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1])
    for job in study.jobs():
        finish(job, State.FAILED)
    study.advance()
    shown = api.get(f"{STUDIES}/{study.pk}").json()
    assert (shown["state"], shown["error"]["code"]) == ("failed", "bad_data")
    assert [arm["error"]["message"] for arm in shown["arms"]] == ["Row 1 has no answer."] * 2
    assert shown["verdict"].startswith("No arm of this study has a result")
