"""Studies that reuse finished runs with equal specs, and their evaluations on equal rows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from django.test import Client

from dashboard.models import BaseModel, Dataset, Evaluation, Job, Project, Study, TrainingRun, User
from dashboard.models.studies.results.export import study_dict
from dashboard.models.studies.results.limits import measured_beside
from tests.conftest import make_base_model, make_dataset
from tests.dashboard.studies.factories import conclude, make_arms, make_study
from tests.dashboard.studies.results.test_study_result import TABLE
from workers.contract.hyperparameters import Hyperparameters

STUDIES = "/api/v1/studies"


@pytest.fixture
def earlier(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Iterator[Study]:
    """Finished: two arms with three seeds, whose adapters are on disk."""
    study = conclude(make_study(project, dataset, base_model, by=ed, reuse=True), TABLE)
    folders = [run.adapter.path() for run in study.final_runs()]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    yield study
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def trained(study: Study) -> int:
    """Return the number of runs that were queued for training."""
    return study.runs().exclude(job=None).count()


def test_equal_study_trains_nothing_again(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User, earlier: Study
) -> None:
    study = make_study(project, dataset, base_model, by=ed, reuse=True)
    assert trained(study) == 0
    assert {run.reused_from.study_arm.study_id for run in study.final_runs()} == {earlier.pk}
    study = conclude(study, TABLE)
    assert study.state == "succeeded"
    assert study.result.comparisons == earlier.result.comparisons
    assert study.jobs().count() == 1, "the base model and one adapter are scored"
    assert Evaluation.objects.filter(run__study_arm__study=study).exclude(reused_from=None).count() == 5


def test_page_report_and_api_name_the_reused_runs(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User, earlier: Study, client: Client
) -> None:
    study = conclude(make_study(project, dataset, base_model, by=ed, reuse=True), TABLE)
    first = earlier.final_runs()[0]
    client.force_login(ed)
    page = client.get(study.get_absolute_url()).content.decode()
    assert f"reused from run {first.pk}" in page
    assert f'href="{first.get_absolute_url()}"' in page
    assert f"efficient with seed 1 (run {first.pk})" in measured_beside(study)
    assert study_dict(study)["arms"][0]["reused_from"] == [run.pk for run in earlier.arm_list[0].final_runs()]


def test_missing_runs_are_trained_beside_reused_ones(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User, earlier: Study
) -> None:
    study = conclude(
        make_study(project, dataset, base_model, by=ed, reuse=True, slugs=("efficient", "mlp", "quality")),
        TABLE,
    )
    assert trained(study) == 3
    assert {run.study_arm.name for run in study.runs().exclude(job=None)} == {"mlp"}
    assert [len(arm.seeds) for arm in study.result.arms] == [3, 3, 3]


def test_other_rows_are_scored_anew(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User, earlier: Study
) -> None:
    study = make_study(project, dataset, base_model, by=ed, reuse=True, test_rows=1)
    assert trained(study) == 0
    assert not Evaluation.objects.exclude(reused_from=None).exists()
    assert study.jobs().filter(kind=Job.Kind.EVALUATE).count() == 3


def test_study_without_reuse_trains_every_run(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User, earlier: Study
) -> None:
    assert trained(make_study(project, dataset, base_model, by=ed, reuse=False)) == 6


def test_run_without_its_adapter_is_trained_again(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User, earlier: Study
) -> None:
    shutil.rmtree(earlier.final_runs()[0].adapter.path())
    assert trained(make_study(project, dataset, base_model, by=ed, reuse=True)) == 1


def test_runs_of_an_open_study_are_not_reused(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User, earlier: Study
) -> None:
    Study.objects.filter(pk=earlier.pk).update(finished_at=None)
    assert trained(make_study(project, dataset, base_model, by=ed, reuse=True)) == 6


def test_runs_of_another_project_are_not_reused(
    other_project: Project, base_model: BaseModel, otto: User, earlier: Study
) -> None:
    data, base = make_dataset(other_project, "Theirs"), make_base_model(other_project, "Other")
    assert trained(make_study(other_project, data, base, by=otto, reuse=True)) == 6


@pytest.mark.parametrize("changed", [{"learning_rate": 3e-4}, {"r": 8}, {"max_steps": 11}])
def test_other_settings_are_trained(
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    ed: User,
    earlier: Study,
    changed: dict[str, int],
) -> None:
    arms = make_arms("efficient", "quality", **changed)
    assert trained(make_study(project, dataset, base_model, by=ed, reuse=True, arms=arms)) == 6


def test_adjusted_run_is_not_reused(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User, earlier: Study
) -> None:
    TrainingRun.objects.update(adjustments=[{"reason": "out_of_memory", "attempt": 1, "changes": {}}])
    assert trained(make_study(project, dataset, base_model, by=ed, reuse=True)) == 6


def test_repeated_request_starts_one_study_that_trains_nothing(
    api: Client, dataset: Dataset, base_model: BaseModel, earlier: Study
) -> None:
    learn = {"r": 4, "max_steps": 10, "max_length": 64, "learning_rate": Hyperparameters().learning_rate}
    arms = [{"target_module_config": name, "hyperparameters": learn} for name in ("efficient", "quality")]
    plan = {"dataset": dataset.pk, "base_model": base_model.pk, "arms": arms, "seeds": [1, 2, 3]}
    plan |= {"metric": "exact_match", "margin": 0.02}
    first, second = (
        api.post(STUDIES, plan, headers={"Idempotency-Key": "once"}, content_type="application/json")
        for _time in range(2)
    )
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"] != earlier.pk
    assert trained(Study.objects.get(pk=first.json()["id"])) == 0
