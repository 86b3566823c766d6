"""Studies over the API: what is refused, what is shown, and every number recomputed from the export."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from django.test import Client

from dashboard.models import ApiToken, BaseModel, Dataset, Project, State, Study, User
from tests.conftest import finish
from tests.dashboard.conftest import make_checkpoint
from tests.dashboard.studies.factories import Table, conclude, make_study, score_first_seed

STUDIES = "/api/v1/studies"
HEAD = {"content_type": "application/json"}


@pytest.fixture
def api(token: str) -> Client:
    return Client(headers={"Authorization": f"Bearer {token}"})


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
    """Twenty items, two arms, two seeds: right or wrong as they were written down by hand."""
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


def test_it_queues_one_job_per_seed(api: Client, body: dict[str, Any]) -> None:
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


def test_a_repeated_call_with_its_key_makes_one_study(api: Client, body: dict[str, Any]) -> None:
    first, second = (api.post(STUDIES, body, headers={"Idempotency-Key": "k"}, **HEAD) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert Study.objects.count() == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"arms": []}, "arms"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"metric": "beauty"}, "metric"),
        ({"reference": "nobody"}, "reference"),
        ({"margin": -0.1}, "margin"),
        ({"budget": "equal-luck"}, "budget"),
        ({"learning_rates": [1e-3, 1e-3]}, "learning_rates"),
        ({"learning_rates": [1e-3, 7.0]}, "learning_rates"),
        ({"seeds": [1, -2]}, "seeds"),
        ({"seeds": [10**400]}, "seeds"),
        ({"test_rows": 0}, "test_rows"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_it_refuses_a_plan_that_cannot_be_judged(
    api: Client, body: dict[str, Any], changes: dict[str, Any], field: str
) -> None:
    assert refused(api.post(STUDIES, body | changes, **HEAD), 422, field)
    assert Study.objects.count() == 0


def test_it_says_which_arm_has_a_wrong_setting(api: Client, body: dict[str, Any]) -> None:
    body["arms"][1]["hyperparameters"] = {"r": 0}
    assert "`r`" in refused(api.post(STUDIES, body, **HEAD), 422, "arms.1.hyperparameters.r")


def test_it_says_which_arm_has_an_unknown_choice(api: Client, body: dict[str, Any]) -> None:
    body["arms"][1]["target_module_config"] = "made-up"
    refused(api.post(STUDIES, body, **HEAD), 404, "arms.1.target_module_config")


def test_it_refuses_arms_that_differ_in_length(api: Client, body: dict[str, Any]) -> None:
    body["arms"][1]["hyperparameters"] = {"r": 4, "max_steps": 20, "max_length": 64}
    assert "quality" in refused(api.post(STUDIES, body, **HEAD), 422, "arms")


def test_two_arms_of_one_preset_need_names(api: Client, body: dict[str, Any]) -> None:
    body["arms"].append(body["arms"][0])
    assert "efficient" in refused(api.post(STUDIES, body, **HEAD), 422, "arms")


def test_a_reference_is_required_where_quality_is_no_arm(api: Client, body: dict[str, Any]) -> None:
    body["arms"][1]["target_module_config"] = "mlp"
    assert refused(api.post(STUDIES, body, **HEAD), 422, "reference").startswith("Say which arm the others")
    assert api.post(STUDIES, body | {"reference": "mlp"}, **HEAD).status_code == 202


def test_equal_parameters_changes_the_ranks(api: Client, body: dict[str, Any]) -> None:
    study = api.post(STUDIES, body | {"budget": "equal-parameters"}, **HEAD).json()
    small, large = (arm["trainable_parameters"] for arm in study["arms"])
    assert abs(small / large - 1) < 0.05


def test_every_number_can_be_recomputed_from_the_export(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = conclude(make_study(project, dataset, base_model, seeds=[1, 2]), worked_example())
    found = api.get(f"{STUDIES}/{study.pk}/export").json()
    assert len(found["scores"]) == 20 + 2 * 2 * 20
    scores: dict[tuple[str, int | None], np.ndarray[Any, Any]] = {}
    for arm, seed in {(one["arm"], one["seed"]) for one in found["scores"]}:
        rows = sorted(
            (one["item"], one["value"]) for one in found["scores"] if (one["arm"], one["seed"]) == (arm, seed)
        )
        scores[arm, seed] = np.array([value for _item, value in rows], dtype=np.float64)
    shown = found["study"]
    means = {arm["name"]: arm["metric"]["mean"] for arm in shown["arms"]}
    for arm in ("efficient", "quality"):
        assert means[arm] == pytest.approx(np.mean([scores[arm, 1], scores[arm, 2]]))
    assert shown["base"]["metric"]["mean"] == pytest.approx(scores["base", None].mean()) == 0.2
    (comparison,) = shown["comparisons"]

    # The bootstrap by hand, from its description: 10,000 draws of items and seeds, seed 0, paired.
    differences = np.array([scores["efficient", seed] - scores["quality", seed] for seed in (1, 2)])
    random = np.random.default_rng(0)
    items = random.multinomial(20, np.full(20, 1 / 20), size=10_000) / 20
    seeds = random.multinomial(2, np.full(2, 1 / 2), size=10_000) / 2
    deviations = (items @ differences.T * seeds).sum(axis=1) - differences.mean()
    item_variance = (items @ differences.mean(axis=0)).var()
    seed_variance = differences.mean(axis=1).var(ddof=1) / 2
    freedom = (item_variance + seed_variance) ** 2 / (item_variance**2 / 19 + seed_variance**2 / 1)
    from scipy.stats import norm, t

    widen = np.sqrt(item_variance + seed_variance) / deviations.std()
    widen *= t.ppf(0.975, freedom) / norm.ppf(0.975)
    low, high = differences.mean() + widen * np.quantile(deviations, [0.025, 0.975])
    assert comparison["difference"] == pytest.approx(differences.mean()) == -0.1
    assert (comparison["low"], comparison["high"]) == pytest.approx((low, high))
    assert comparison["outcome"] == "indicative_only"
    assert shown["verdict"].startswith("Indicative only, with 2 seeds")


def test_the_export_names_no_path_of_the_installation(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model)
    text = api.get(f"{STUDIES}/{study.pk}/export").content.decode()
    assert "/tmp" not in text  # noqa: S108 - looked for, not used
    assert '"path"' not in text


def test_it_stops_every_job(api: Client, project: Project, dataset: Dataset, base_model: BaseModel) -> None:
    study = make_study(project, dataset, base_model)
    answer = api.post(f"{STUDIES}/{study.pk}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    assert set(study.jobs().values_list("state", flat=True)) == {"cancelled"}
    assert "cancelled" in refused(api.post(f"{STUDIES}/{study.pk}/cancel"), 409)


def test_it_adds_seeds_to_a_finished_study(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = conclude(make_study(project, dataset, base_model, seeds=[1, 2]), worked_example())
    answer = api.post(f"{STUDIES}/{study.pk}/seeds", {"seeds": [3]}, **HEAD)
    assert (answer.status_code, answer.json()["state"], answer.json()["seeds"]) == (202, "running", [1, 2, 3])
    assert answer.json()["verdict"] is None
    (addition,) = answer.json()["additions"]
    assert (addition["seeds"], addition["after_result"]) == ([3], True)
    assert refused(api.post(f"{STUDIES}/{study.pk}/seeds", {"seeds": [3]}, **HEAD), 422, "seeds")


def test_another_project_sees_nothing_of_it(
    project: Project, other_project: Project, otto: User, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model)
    theirs = Client(headers={"Authorization": f"Bearer {ApiToken.issue(other_project, otto, 'o')[1]}"})
    for path in ("", "/export"):
        refused(theirs.get(f"{STUDIES}/{study.pk}{path}"), 404)
    for path in ("/cancel", "/seeds"):
        refused(theirs.post(f"{STUDIES}/{study.pk}{path}", {"seeds": [9]}, **HEAD), 404)


def test_a_study_without_result_takes_no_seeds(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model)
    api.post(f"{STUDIES}/{study.pk}/cancel")
    answer = api.post(f"{STUDIES}/{study.pk}/seeds", {"seeds": [9]}, **HEAD)
    refused(answer, 409)
    assert answer.json()["error"]["code"] == "not_extendable"


def test_a_repeated_key_adds_seeds_once_and_refuses_another_body(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = conclude(make_study(project, dataset, base_model, seeds=[1, 2]), worked_example())
    address, key = f"{STUDIES}/{study.pk}/seeds", {"Idempotency-Key": "k"}
    for _call in range(2):
        answer = api.post(address, {"seeds": [3]}, headers=key, **HEAD)
        assert (answer.status_code, answer.json()["seeds"]) == (202, [1, 2, 3])
    refused(api.post(address, {"seeds": [4]}, headers=key, **HEAD), 422, "Idempotency-Key")
    assert len(Study.objects.get(pk=study.pk).additions) == 1


def test_a_refused_stop_leaves_its_key_free(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = conclude(make_study(project, dataset, base_model, seeds=[1, 2]), worked_example())
    for _call in range(2):
        refused(api.post(f"{STUDIES}/{study.pk}/cancel", headers={"Idempotency-Key": "k"}), 409)


def test_a_repeated_stop_with_its_key_is_answered_again(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model)
    for _call in range(2):
        answer = api.post(f"{STUDIES}/{study.pk}/cancel", headers={"Idempotency-Key": "k"})
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")


def test_a_repeated_stop_with_its_key_spares_a_study_that_was_taken_up_since(
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


def test_the_metric_regex_needs_a_pattern_and_no_other_takes_one(api: Client, body: dict[str, Any]) -> None:
    assert refused(api.post(STUDIES, body | {"metric": "regex"}, **HEAD), 422, "pattern")
    assert refused(api.post(STUDIES, body | {"metric": "regex", "pattern": "("}, **HEAD), 422, "pattern")
    assert refused(api.post(STUDIES, body | {"pattern": "a"}, **HEAD), 422, "pattern")
    study = api.post(STUDIES, body | {"metric": "regex", "pattern": r"total: (\d+)"}, **HEAD).json()
    assert (study["metric"], study["pattern"]) == ("regex", r"total: (\d+)")


def test_a_metric_of_answers_is_refused_where_rows_have_none(
    api: Client, body: dict[str, Any], dataset: Dataset
) -> None:
    version = dataset.versions.get()
    version.report = {**version.report, "answers": "none"}
    version.save()
    assert "plain text" in refused(api.post(STUDIES, body, **HEAD), 422, "metric")
    assert api.post(STUDIES, {**body, "metric": "loss"}, **HEAD).status_code == 202


ASKED_FOR = {"id", "name", "state", "metric", "margin", "arms", "base", "comparisons", "verdict", "error"}
OF_AN_ARM = {"name", "trainable_parameters", "adapter_bytes", "seconds", "peak_memory_bytes", "runs", "error"}
OF_A_COMPARISON = {"arm", "reference", "difference", "low", "high", "p_adjusted", "outcome"}


def test_a_study_has_its_promised_shape_before_and_after_its_end(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1, 2])
    before = api.get(f"{STUDIES}/{study.pk}").json()
    assert before.keys() >= ASKED_FOR
    assert (before["comparisons"], before["verdict"], before["error"]) == ([], None, None)
    for arm in before["arms"]:
        assert arm.keys() >= {*OF_AN_ARM, "metric"}
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
    assert comparison.keys() >= OF_A_COMPARISON
    assert (comparison["arm"], comparison["reference"]) == ("efficient", "quality")
    assert isinstance(after["verdict"], str)


def test_what_is_left_out_or_null_has_its_default(api: Client, body: dict[str, Any]) -> None:
    optional = ("name", "base_model", "metric", "reference", "margin", "learning_rates")
    left_out = {name: value for name, value in body.items() if name not in optional}
    for asked in (left_out, left_out | dict.fromkeys(optional)):
        asked["arms"] = [{**arm, "name": None} for arm in body["arms"]] if "name" in asked else body["arms"]
        answer = api.post(STUDIES, asked | {"base_model": body["base_model"]}, **HEAD)
        assert answer.status_code == 202, answer.content
        study = answer.json()
        assert (study["name"], study["metric"]) == ("Study of Tickets", "token_f1")
        assert (study["reference"], study["margin"]) == ("quality", 0.02)


def test_without_learning_rates_each_arm_keeps_its_own(api: Client, body: dict[str, Any]) -> None:
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


def test_with_one_learning_rate_every_arm_has_it(api: Client, body: dict[str, Any]) -> None:
    study = api.post(STUDIES, body | {"learning_rates": [7e-4]}, **HEAD).json()
    assert [arm["learning_rate"] for arm in study["arms"]] == [7e-4, 7e-4]


def test_a_margin_is_in_the_unit_of_the_metric(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    """Efficient is 10 points behind, and the interval reaches no further than 40: 0.4 makes it as good."""
    scores = {"efficient": [0.5] * 40, "quality": [0.6] * 40, "base": [0.1] * 40}
    table = {name: dict.fromkeys((1, 2, 3), values) for name, values in scores.items()}
    for margin, outcome in ((0.4, "not_inferior"), (0.05, "inferior")):
        study = conclude(make_study(project, dataset, base_model, margin=margin), table)
        (one,) = api.get(f"{STUDIES}/{study.pk}").json()["comparisons"]
        assert one["outcome"] == outcome


def test_a_positive_difference_means_better_also_for_a_loss(
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


def test_the_export_names_each_score_by_arm_seed_and_item(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = conclude(make_study(project, dataset, base_model, seeds=[1, 2]), worked_example())
    found = api.get(f"{STUDIES}/{study.pk}/export").json()
    assert found.keys() >= {"study", "settings", "scores"}
    assert found["study"] == api.get(f"{STUDIES}/{study.pk}").json()
    assert all(one.keys() == {"arm", "seed", "item", "group", "value"} for one in found["scores"])
    assert {(one["arm"], one["seed"]) for one in found["scores"]} == {
        ("base", None), ("efficient", 1), ("efficient", 2), ("quality", 1), ("quality", 2)
    }  # fmt: skip
    assert {one["item"] for one in found["scores"]} == set(range(1, 21))


def test_the_export_has_no_scores_before_the_end(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = score_first_seed(make_study(project, dataset, base_model, seeds=[1, 2]), worked_example())
    early = api.get(f"{STUDIES}/{study.pk}/export")
    assert (early.status_code, early.json()["scores"]) == (200, [])
    assert len(early.json()["settings"]) == 4
    conclude(study, worked_example())
    assert len(api.get(f"{STUDIES}/{study.pk}/export").json()["scores"]) == 20 + 2 * 2 * 20


def test_a_study_that_came_to_nothing_says_why(
    api: Client, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1])
    for job in study.jobs():
        finish(job, State.FAILED)
    study.advance()
    shown = api.get(f"{STUDIES}/{study.pk}").json()
    assert (shown["state"], shown["error"]["code"]) == ("failed", "bad_data")
    assert [arm["error"]["message"] for arm in shown["arms"]] == ["Row 1 has no answer."] * 2
    assert shown["verdict"].startswith("No arm of this study came to a result")


@pytest.mark.parametrize("margin", [0, 1, 0.5])
def test_a_margin_may_be_written_without_a_point(api: Client, body: dict[str, Any], margin: float) -> None:
    assert api.post(STUDIES, body | {"margin": margin}, **HEAD).json()["margin"] == margin


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "1"},
        {"seeds": "1"},
        {"seeds": [1.5]},
        {"seeds": [True]},
        {"arms": {}},
        {"margin": "2"},
        {"margin": True},
        {"budget": None},
        {"metric": 5},
        {"reference": 5},
        {"learning_rates": 1e-3},
        {"name": "x" * 121},
    ],
)
def test_a_value_of_another_type_is_refused_by_its_name(
    api: Client, body: dict[str, Any], changes: dict[str, Any]
) -> None:
    answer = api.post(STUDIES, body | changes, **HEAD)
    assert answer.status_code == 422, answer.content
    assert answer.json()["error"]["field"].split(".")[0] == next(iter(changes))
