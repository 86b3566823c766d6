"""The statistical power of a study's plan: what it can show, and what would help."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from dashboard.forms.studies.study_costs import StudyPlan
from dashboard.models import (
    BaseModel,
    Dataset,
    DatasetVersion,
    EvaluationItem,
    Project,
    Study,
    User,
    WorkerNode,
)
from dashboard.models.studies.planning.costs import plan_costs
from dashboard.models.studies.planning.power import PlanPower, Power, power_of
from tests.conftest import make_base_model
from tests.dashboard.studies.factories import Table, conclude, make_arms, make_study
from tests.dashboard.studies.plan.test_study_create import PLAN, entered
from workers.statistics.power import Design

Show = Callable[..., tuple[StudyPlan, str]]


@pytest.fixture
def version(dataset: Dataset) -> DatasetVersion:
    found = dataset.newest_ready()
    assert found
    return found


def with_test_rows(version: DatasetVersion, rows: int, groups: int | None = None) -> None:
    """Give the version that many test rows, without importing any."""
    report = version.report | {"groups": {"test": groups}} if groups else version.report
    DatasetVersion.objects.filter(pk=version.pk).update(splits=version.splits | {"test": rows}, report=report)


@pytest.fixture
def show(client: Client, ed: User, dataset: Dataset, base_model: BaseModel) -> Show:
    """Return the plan beside the form and its text, with some fields changed."""
    client.force_login(ed)

    def plan(**changes: Any) -> tuple[StudyPlan, str]:
        answer = client.get(PLAN, entered(dataset, base_model, **changes))
        text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", answer.content.decode()))
        return answer.context["study_plan"], text

    return plan


def power(**changes: Any) -> PlanPower:
    """Return the power of a plan with 6 arms, 5 seeds and 200 of 5,000 test rows, without a database."""
    design = Design(**{"arms": 6, "seeds": 5, "items": 200, "groups": 200} | changes)
    rows, seeds = 2 * design.items, design.seeds + 2
    larger = [
        Design(**{**vars(design), "items": rows, "groups": rows}),
        Design(**{**vars(design), "seeds": seeds}),
    ]
    now, more_rows, more_seeds = (Power(one, 0.03, "points") for one in (design, *larger))
    return PlanPower(now, more_rows, more_seeds, 5000, is_disagreement_assumed=True, is_spread_assumed=True)


def test_plan_shows_what_it_detects_and_its_assumptions(show: Show, version: DatasetVersion) -> None:
    with_test_rows(version, 60_000)
    plan, text = show(seeds="5", test_rows="1000", margin="3")
    assert plan.power
    assert plan.power.design == Design(arms=2, seeds=5, items=1000, groups=1000)
    assert "Detectable difference 5.4 points with 80 % probability" in text
    assert "Chance of a verdict if the arms are equal 41 % at a margin of 3 points" in text
    assert "Bottleneck Test rows" in text
    assert "Assumption: two arms disagree on 15.0 % of the rows." in text
    assert "between seeds) 1.5 points." in text
    assert "Results are checked after 3 and 5 seeds;" in text


def test_group_of_test_rows_counts_as_one(show: Show, version: DatasetVersion) -> None:
    with_test_rows(version, 60_000, groups=30_000)
    plan, text = show(test_rows="400")
    assert plan.power
    assert plan.power.design == Design(arms=2, seeds=3, items=400, groups=200)
    assert "They come from about 200 groups." in text


@pytest.mark.parametrize(
    ("rows", "groups", "seeds"),
    [(2, 2, "3"), (400, 400, "2"), (400, 4, "3")],
    ids=["rows", "seeds", "groups"],
)
def test_plan_that_is_too_small_is_indicative_only(
    show: Show, version: DatasetVersion, rows: int, groups: int, seeds: str
) -> None:
    with_test_rows(version, rows, groups)
    text = show(seeds=seeds, test_rows="400")[1]
    assert "Indicative only: a verdict needs at least 3 seeds, 20 test rows and 5 groups." in text
    assert "Detectable difference" not in text


def test_plan_offers_more_test_rows_and_seeds_with_their_time(show: Show, version: DatasetVersion) -> None:
    with_test_rows(version, 5000)
    plan, text = show(seeds="3", test_rows="1000", margin="3")
    assert plan.power
    assert plan.power.more_rows
    assert plan.power.more_seeds
    assert plan.power.more_rows.design == Design(arms=2, seeds=3, items=2000, groups=2000)
    assert plan.power.more_seeds.design == Design(arms=2, seeds=5, items=1000, groups=1000)
    assert plan.power.more_rows.seconds
    assert plan.power.more_seeds.seconds
    assert "Use 2,000 test rows" in text
    assert "Use 5 seeds" in text


def test_no_more_test_rows_are_offered_than_the_dataset_has(show: Show, version: DatasetVersion) -> None:
    with_test_rows(version, 300)
    assert "Use 300 test rows" in show(test_rows="200")[1]
    text = show(test_rows="300")[1]
    assert "Use 600" not in text
    assert "this dataset has 300" in text


def test_largest_plan_offers_nothing_larger(version: DatasetVersion, base_model: BaseModel) -> None:
    with_test_rows(version, 60_000)
    version.refresh_from_db()
    found = power_of(
        version.dataset.project,
        base_model,
        version,
        "exact_match",
        arms=6,
        seeds=20,
        test_rows=10_000,
        margin=0.03,
        costs=None,
    )
    assert found
    assert (found.more_rows, found.more_seeds) == (None, None)


def test_seeds_do_not_help_where_test_rows_are_the_bottleneck() -> None:
    found = power(seed_spread=0.005)
    assert (found.more_rows_help, found.more_seeds_help) == (True, False)
    assert found.rows_for_margin
    assert power(seed_spread=0.005, items=found.rows_for_margin, groups=found.rows_for_margin).detects_margin


def test_test_rows_do_not_help_where_seeds_are_the_bottleneck() -> None:
    found = power(seed_spread=0.03, items=4000, groups=4000)
    assert found.design.seeds_are_bottleneck
    assert (found.more_rows_help, found.more_seeds_help) == (False, True)
    assert found.rows_for_margin is None


@pytest.mark.parametrize(("seeds", "looks"), [(3, ""), (4, "3 and 4"), (7, "3, 5 and 7")])
def test_looks_of_a_plan(seeds: int, looks: str) -> None:
    assert power(seeds=seeds).looks == looks


def test_more_seeds_cost_what_a_longer_plan_costs(
    project: Project, version: DatasetVersion, base_model: BaseModel, ed: User
) -> None:
    three, five = (
        plan_costs(
            project, ed, base_model, version, make_arms("mlp", "quality"), seeds=seeds, rates=0, test_rows=2
        )
        for seeds in (3, 5)
    )
    added = five.plan.seconds["expected"] - three.plan.seconds["expected"]
    assert three.seconds_of_more_seeds == pytest.approx(added, rel=0.05)


def test_two_workers_end_a_study_in_half_the_time(
    project: Project, version: DatasetVersion, base_model: BaseModel, ed: User
) -> None:
    WorkerNode.objects.register("gpu0@host", queue="gpu", host="host", pid=1, processes=2)
    costs = plan_costs(
        project, ed, base_model, version, make_arms("mlp", "quality"), seeds=3, rates=0, test_rows=2
    )
    assert costs.seconds_to_end == pytest.approx(costs.plan.seconds["expected"] / 2)


# Measured by earlier studies

SCORES: Table = {
    "base": {0: [0] * 4},
    "efficient": {1: [1, 1, 0, 0], 2: [1, 0, 0, 0], 3: [1, 1, 1, 0]},
    "quality": {1: [1, 0, 0, 1], 2: [1, 0, 0, 1], 3: [1, 0, 0, 1]},
}


def test_difference_of_a_row_is_between_the_means_of_the_seeds(
    project: Project, dataset: Dataset, base_model: BaseModel, version: DatasetVersion, show: Show
) -> None:
    conclude(make_study(project, dataset, base_model), SCORES)
    # Differences 0, 2/3, 1/3 and -1.
    assert EvaluationItem.objects.variance_of_difference(version, "exact_match") == pytest.approx(14 / 27)
    assert EvaluationItem.objects.variance_of_difference(version, "chrf") is None


def test_seed_spread_comes_from_studies_of_the_same_base_model_and_metric(
    project: Project, other_project: Project, dataset: Dataset, base_model: BaseModel, version: DatasetVersion
) -> None:
    assert Study.objects.seed_spread(project, base_model, "exact_match") is None
    conclude(make_study(project, dataset, base_model), SCORES)
    # Means 1/2, 1/4, 3/4 of one arm and thrice 1/2 of the other: 1/8 over 4 degrees of freedom.
    assert Study.objects.seed_spread(project, base_model, "exact_match") == pytest.approx((1 / 32) ** 0.5)
    assert Study.objects.seed_spread(project, base_model, "chrf") is None
    assert Study.objects.seed_spread(other_project, base_model, "exact_match") is None
    other = make_base_model(project, "Other", "example/other")
    assert Study.objects.seed_spread(project, other, "exact_match") is None


def test_plan_uses_what_earlier_studies_measured(
    project: Project, dataset: Dataset, base_model: BaseModel, version: DatasetVersion, show: Show
) -> None:
    conclude(make_study(project, dataset, base_model), SCORES)
    with_test_rows(version, 1000)
    plan, text = show(metric="exact_match")
    assert plan.power
    assert plan.power.design.item_variance == pytest.approx(14 / 27)
    assert plan.power.design.seed_spread == pytest.approx((1 / 32) ** 0.5)
    assert "Assumption" not in text


@pytest.mark.parametrize(
    ("seeds", "table"),
    [([1, 2], SCORES), ([1, 2, 3], SCORES | {"efficient": SCORES["quality"]})],
    ids=["few", "equal"],
)
def test_few_or_equal_seeds_measure_no_spread(
    project: Project, dataset: Dataset, base_model: BaseModel, seeds: list[int], table: Table
) -> None:
    conclude(make_study(project, dataset, base_model, seeds=seeds), table)
    assert Study.objects.seed_spread(project, base_model, "exact_match") is None


def test_power_of_a_loss_is_unknown_before_a_study(show: Show, version: DatasetVersion) -> None:
    with_test_rows(version, 1000)
    assert show(metric="loss")[0].power is None
