"""Arms with DoRA or on experts need a dedicated base model, so they have jobs of their own."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from django.test import Client

from dashboard.models import ArmPlan, BaseModel, Dataset, Job, Project, State, Study, TargetModuleConfig, User
from dashboard.models.studies.plan import count_jobs
from dashboard.models.studies.results.export import study_dict
from dashboard.models.studies.results.limits import measured_beside
from dashboard.presenters.study_grid import grid_of
from tests.dashboard.studies.factories import Table, conclude, end_training, make_arms, make_study
from tests.dashboard.studies.plan.test_study_create import PLAN, entered
from workers.contract.hyperparameters import Hyperparameters

SEEDS = (1, 2)
TABLE: Table = {
    name: {seed: [0, 1, 1, 0] for seed in SEEDS} for name in ("base", "efficient", "quality", "mlp")
}
RATES = [1e-4, 2e-4, 4e-4]
SLUGS = ("efficient", "mlp", "quality")


def arms_by_job(study: Study, kind: str = Job.Kind.TRAIN) -> Counter[tuple[str, ...]]:
    """Return the arms of each job, with the number of such jobs."""
    jobs = study.jobs().filter(kind=kind)
    if kind == Job.Kind.TRAIN:
        return Counter(tuple(str(run.study_arm) for run in job.training_runs.order_by("pk")) for job in jobs)
    return Counter(
        tuple(sorted(str(one.run.study_arm) for one in job.evaluations.exclude(adapter=None))) for job in jobs
    )


@pytest.fixture
def moe(base_model: BaseModel) -> BaseModel:
    """A base model whose MLP layers are experts."""
    census = base_model.census or {}
    for group in census["groups"]:
        if group["role"] == "mlp_down":
            group.update(role="expert_down", scope="routed_expert", kind="expert", experts=4)
    base_model.census = census
    base_model.save()
    return base_model


def dora_arm() -> ArmPlan:
    learn = Hyperparameters(r=4, max_steps=10, max_length=64, use_dora=True)
    return ArmPlan("dora", TargetModuleConfig.objects.get(slug="efficient"), learn)


def test_arms_of_a_seed_share_one_job(project: Project, dataset: Dataset, base_model: BaseModel) -> None:
    study = make_study(project, dataset, base_model, slugs=SLUGS, seeds=SEEDS)
    assert arms_by_job(study) == {SLUGS: 2}


def test_dora_arms_have_jobs_of_their_own(project: Project, dataset: Dataset, base_model: BaseModel) -> None:
    study = make_study(
        project, dataset, base_model, seeds=SEEDS, arms=[*make_arms("efficient", "quality"), dora_arm()]
    )
    assert arms_by_job(study) == {("efficient", "quality"): 2, ("dora",): 2}
    study = conclude(study, {**TABLE, "dora": TABLE["efficient"]})
    assert arms_by_job(study, Job.Kind.EVALUATE) == {("efficient", "quality"): 2, ("dora",): 2}
    assert study.state == "succeeded"
    assert len(study.result.comparisons) == 2


def test_expert_arms_have_jobs_of_their_own(project: Project, dataset: Dataset, moe: BaseModel) -> None:
    study = make_study(project, dataset, moe, slugs=SLUGS, seeds=SEEDS)
    assert arms_by_job(study) == {("efficient",): 2, ("mlp",): 2, ("quality",): 2}
    study = conclude(study, TABLE)
    assert arms_by_job(study, Job.Kind.EVALUATE) == {("efficient",): 2, ("mlp",): 2, ("quality",): 2}
    bases = [one for job in study.jobs() for one in job.evaluations.filter(adapter=None)]
    assert len(bases) == 1, "the base is scored once"


def test_planned_number_of_jobs_is_queued(project: Project, dataset: Dataset, base_model: BaseModel) -> None:
    for use_dora, alone in ((False, 0), (True, 2)):
        arms = make_arms("efficient", "quality", use_dora=use_dora)
        study = make_study(project, dataset, base_model, seeds=SEEDS, learning_rates=RATES, arms=arms)
        conclude(study, TABLE)
        assert study.jobs().filter(kind=Job.Kind.TRAIN).count() == count_jobs(2, alone, len(SEEDS), 3)


def test_result_states_shared_measurements(project: Project, dataset: Dataset, base_model: BaseModel) -> None:
    arms = [*make_arms("efficient", "quality"), dora_arm()]
    mixed = make_study(project, dataset, base_model, seeds=[1], arms=arms)
    assert measured_beside(mixed).endswith("Trained alone, with no other arm beside them: dora.")
    assert [arm["measured_alone"] for arm in study_dict(mixed)["arms"]] == [False, False, True]
    alone = make_study(
        project, dataset, base_model, seeds=[1], arms=make_arms("efficient", "quality", use_dora=True)
    )
    assert measured_beside(alone).startswith("Every run trained alone")
    assert [arm["measured_alone"] for arm in study_dict(alone)["arms"]] == [True, True]
    plain = make_study(project, dataset, base_model, seeds=[1])
    assert "Trained alone" not in measured_beside(plain)
    assert "share one loaded base model" in measured_beside(plain)


def test_plan_names_arms_that_train_alone(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)

    def plan(**changes: Any) -> Any:
        answer = client.get(PLAN, entered(dataset, base_model, **changes))
        return answer.context["study_plan"].costs, re.sub(r"\s+", " ", answer.content.decode())

    shared, text = plan()
    assert "train together on one loaded base model" in text
    alone, text = plan(use_dora="on")
    assert "Every run trains in its own job and loads the base model itself." in text
    assert alone.plan.seconds["expected"] > shared.plan.seconds["expected"]
    assert alone.plan.saved == 0


def test_grid_shows_all_jobs_of_a_seed(project: Project, dataset: Dataset, base_model: BaseModel) -> None:
    arms = make_arms("efficient", "quality", use_dora=True)
    study = make_study(project, dataset, base_model, seeds=[1], arms=arms)
    found = grid_of(Study.objects.with_facts().get(pk=study.pk))
    assert [len(column.jobs) for column in found.columns] == [2]
    end_training(study.jobs().filter(state=State.QUEUED).earliest("pk"))
    study.advance()
    found = grid_of(Study.objects.with_facts().get(pk=study.pk))
    assert [cell.state for row in found.rows for cell in row.cells] == ["trained", "queued"]
    assert [sorted(job.kind for job in column.jobs) for column in found.columns] == [["evaluate", "train"]]
