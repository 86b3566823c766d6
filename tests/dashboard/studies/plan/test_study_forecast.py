"""Forecast of a study's time: training and evaluation, before the start and with added seeds."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client

from dashboard.models import BaseModel, Dataset, Job, Project, ScoringTime, State, Study, User
from dashboard.models.jobs.compute_budget import BudgetStatus
from dashboard.models.studies.added_seeds import add_seeds
from dashboard.models.studies.forecast import plan_forecast
from dashboard.models.training.evaluation_cost import record_scoring_time
from dashboard.views.studies.study_results import times_of
from tests.dashboard.studies.factories import (
    Table,
    conclude,
    end_evaluation,
    end_training,
    make_arms,
    make_study,
)
from tests.dashboard.studies.plan.test_study_create import PLAN, entered
from workers.forecasting import evaluation_cost

TABLE: Table = {
    name: {seed: [0, 1, 1, 0] for seed in (1, 2, 3, 4)} for name in ("base", "efficient", "quality", "mlp")
}
ENGINE_RESULT = {"rows": 4, "dtype": "float32", "device": "CPU", "threads": 1}


def forecast(base_model: BaseModel, dataset: Dataset, *slugs: str, **plan: Any) -> Any:
    usual = {"seeds": 3, "rates": 0, "test_rows": 200}
    arms = make_arms(*(slugs or ("efficient", "quality")))
    return plan_forecast(base_model, dataset.newest_ready(), arms, **usual | plan)


def measured(base_model: BaseModel, times: float, *, device: str = "CPU", count: int = 6) -> None:
    """Record evaluations that took `times` the estimated seconds."""
    for _job in range(count):
        ScoringTime.objects.create(
            base_model=base_model,
            device=device,
            dtype="float32",
            formula=evaluation_cost.FORMULA,
            estimated_seconds=10.0,
            seconds=10.0 * times,
        )


def test_plan_shows_training_and_evaluation(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    answer = client.get(PLAN, entered(dataset, base_model))
    costs = answer.context["study_plan"].costs
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", answer.content.decode()))
    assert "of which training about" in text
    assert "of which evaluation about" in text
    assert "comes on top" not in text
    for end in ("low", "expected", "high"):
        assert costs.plan.seconds[end] == costs.plan.training[end] + costs.plan.scoring[end]
    assert costs.plan.scoring["low"] < costs.plan.scoring["expected"] < costs.plan.scoring["high"]


def test_evaluation_time_grows_with_arms_seeds_and_rows(base_model: BaseModel, dataset: Dataset) -> None:
    one = forecast(base_model, dataset).scoring["expected"]
    assert forecast(base_model, dataset, "efficient", "mlp", "quality").scoring["expected"] > one
    assert forecast(base_model, dataset, seeds=6).scoring["expected"] > 1.8 * one
    assert forecast(base_model, dataset, test_rows=1).scoring["expected"] < one
    assert forecast(base_model, dataset, rates=4).scoring["expected"] == one, "short runs are not scored"


def test_measured_evaluations_correct_the_forecast(base_model: BaseModel, dataset: Dataset) -> None:
    before = forecast(base_model, dataset).scoring
    measured(base_model, 3.0)
    after = forecast(base_model, dataset).scoring
    assert after["expected"] == pytest.approx(3 * before["expected"], rel=0.1)
    assert after["high"] / after["low"] < before["high"] / before["low"], "and narrows its range"


def test_measurements_of_another_device_are_ignored(base_model: BaseModel, dataset: Dataset) -> None:
    before = forecast(base_model, dataset).scoring
    measured(base_model, 3.0, device="NVIDIA H100")
    assert forecast(base_model, dataset).scoring == before


def test_ended_evaluation_records_its_time(project: Project, dataset: Dataset, base_model: BaseModel) -> None:
    study = make_study(project, dataset, base_model, seeds=[1])
    end_training(study.jobs().get())
    study.advance()
    job = study.jobs().get(kind=Job.Kind.EVALUATE)
    assert record_scoring_time(job, ENGINE_RESULT) is None, "an older engine told no time"
    kept = record_scoring_time(job, ENGINE_RESULT | {"seconds": 42.0})
    assert kept
    assert (kept.seconds, kept.device, kept.base_model) == (42.0, "CPU", base_model)
    assert kept.estimated_seconds > 0


def test_promised_time_shrinks_with_each_evaluation(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1, 2])
    whole = study.whole_forecast - study.forecast_seconds
    assert whole > 0
    assert BudgetStatus.for_project(project).reserved == pytest.approx(study.whole_forecast, rel=0.01)
    for job in study.jobs().order_by("pk"):
        end_training(job)
    study.advance()
    assert BudgetStatus.for_project(project).reserved == pytest.approx(whole)
    end_evaluation(study.jobs().filter(kind=Job.Kind.EVALUATE).earliest("pk"), TABLE, study.metric)
    study.advance()
    assert BudgetStatus.for_project(project).reserved == pytest.approx(whole / 2)
    end_evaluation(study.jobs().get(state=State.QUEUED), TABLE, study.metric)
    study.advance()
    assert BudgetStatus.for_project(project).reserved == 0


def test_forecast_includes_added_seeds(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = conclude(make_study(project, dataset, base_model), TABLE)
    before = {part["label"]: part["span"]["expected"] for part in times_of(study)}
    add_seeds(study, [4], ed)
    after = times_of(conclude(Study.objects.get(pk=study.pk), TABLE))
    assert all(part["span"]["expected"] > before[part["label"]] for part in after)
