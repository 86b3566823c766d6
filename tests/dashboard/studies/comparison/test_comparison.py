"""Chosen runs as arms: what counts as a seed, what is compared with what, and what may be said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from dashboard.charts.study_charts import pareto
from dashboard.models import BaseModel, Dataset, EvaluationItem, Project, TrainingRun, User
from dashboard.models.studies.limits import warnings
from dashboard.models.studies.results.comparison import UnsavedStudy, arms_of
from dashboard.models.studies.results.text import sentence
from tests.conftest import make_dataset, make_run
from tests.dashboard.conftest import publish
from tests.dashboard.studies.comparisons import rights, score, scored_runs

Arms = dict[str, Sequence[Sequence[float]]]
Scored = Callable[[Arms], list[TrainingRun]]
THREE: Arms = {
    "Low": [rights(0.4, seed=seed) for seed in (1, 2, 3)],
    "High": [rights(0.9, seed=seed) for seed in (4, 5, 6)],
}


@pytest.fixture
def scored(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Scored:
    """Makes evaluated runs from the scores of their rows."""
    return lambda arms: scored_runs(project, dataset, base_model, ed, arms)


def again(runs: Sequence[TrainingRun]) -> list[TrainingRun]:
    """The same runs as the page reads them."""
    found = TrainingRun.objects.with_facts().with_scores().in_bulk([run.pk for run in runs])
    return [found[run.pk] for run in runs]


def compared(runs: Sequence[TrainingRun], metric: str = "", reference: str = "") -> UnsavedStudy:
    return UnsavedStudy.of(runs, metric, reference)


def test_runs_that_differ_in_nothing_but_the_seed_are_one_arm(scored: Scored) -> None:
    low, high = arms_of(scored(THREE))
    assert (low.seeds, high.seeds) == ([1, 2, 3], [1, 2, 3])


def test_the_same_seed_twice_counts_once(scored: Scored) -> None:
    runs = scored({"Low": [rights(0.4)], "High": [rights(0.9)]})
    twin = make_run(
        runs[0].project,
        runs[0].dataset_version.dataset,
        runs[0].base_model,
        name="Twin",
        seed=1,
        learning_rate=1e-4,
    )
    comparison = compared(again([*runs, twin]))
    assert [len(arm.runs) for arm in comparison.arm_list] == [1, 1]
    assert any(f"not counted: Twin #{twin.pk}" in text for text in warnings(comparison))


def test_it_decides_on_three_seeds_and_says_by_how_much(scored: Scored) -> None:
    runs = scored(THREE)
    said = sentence(compared(runs))
    first = np.array([np.array(THREE["High"][seed]) - np.array(THREE["Low"][seed]) for seed in range(3)])
    assert f"High #{runs[3].pk} is better than Low #{runs[0].pk} by {100 * first.mean():.1f}" in said
    assert "95 % interval" in said


def test_it_turns_round_with_the_pinned_reference(scored: Scored) -> None:
    runs = scored(THREE)
    # Any run of the arm pins it.
    said = sentence(compared(runs, reference=str(runs[4].pk)))
    assert f"Low #{runs[0].pk} is worse than High #{runs[3].pk}" in said


def test_a_lower_loss_is_better(scored: Scored) -> None:
    runs = scored(THREE)
    said = sentence(compared(runs, metric="loss"))
    assert f"High #{runs[3].pk} is better than Low #{runs[0].pk}" in said


def test_one_seed_is_indicative_only(scored: Scored) -> None:
    said = sentence(compared(scored({"Low": [rights(0.2)], "High": [rights(0.9)]})))
    assert said.startswith("Indicative only, with 1 seed")


def test_arms_that_overlap_are_not_ranked(scored: Scored) -> None:
    runs = scored(
        {name: [rights(0.5, seed=seed + shift) for seed in range(3)] for name, shift in (("A", 0), ("B", 9))}
    )
    assert sentence(compared(runs)).startswith("Not enough evidence to tell B")


def test_seeds_that_are_not_shared_are_paired_in_order_and_it_says_so(
    scored: Scored, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    runs = scored({"Low": [rights(0.4)]})
    other = make_run(project, dataset, base_model, name="High", seed=77, learning_rate=0.05)
    score(publish(other), rights(0.9, seed=8))
    comparison = compared(again([*runs, other]))
    assert len(comparison.result.comparisons) == 1
    assert any("No seed in common" in text for text in warnings(comparison))


def test_it_compares_on_the_rows_that_all_have(
    scored: Scored, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    runs = scored({"Low": [rights(0.4)]})
    other = make_run(project, dataset, base_model, name="High", learning_rate=0.05)
    score(publish(other), rights(0.9, count=40), first_row=31)
    comparison = compared(again([*runs, other]))
    assert comparison.result.items == 30
    assert "Compared on the 30 rows that all were scored on; some were scored on up to 60." in warnings(
        comparison
    )


def test_it_compares_nothing_across_datasets_and_says_why(
    scored: Scored, project: Project, base_model: BaseModel, ed: User
) -> None:
    runs = scored({"Low": [rights(0.4)]})
    other = make_run(project, make_dataset(project, "Mails", by=ed), base_model, by=ed, name="Mails")
    score(publish(other), rights(0.9))
    comparison = compared(again([*runs, other]))
    assert comparison.result.comparisons == []
    assert any(f"so not compared with it: Mails #{other.pk}" in text for text in warnings(comparison))


def test_it_warns_where_answers_were_cut_at_different_lengths(
    scored: Scored, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    runs = scored({"Low": [rights(0.4)]})
    other = make_run(project, dataset, base_model, name="High", seed=1, max_length=32)
    score(publish(other), rights(0.9))
    assert any("different maximum lengths" in text for text in warnings(compared(again([*runs, other]))))


def test_arms_that_cannot_be_told_apart_are_one_group_on_the_cost_chart(scored: Scored) -> None:
    alike: Arms = {
        name: [rights(0.5, seed=seed + shift) for seed in range(3)] for name, shift in (("A", 0), ("B", 9))
    }
    for arms, grouped in ((alike, True), (THREE, False)):
        drawn = pareto(compared(scored(arms)), "trainable_parameters")
        assert drawn
        assert bool(drawn["tied"]) == grouped


def test_it_says_so_where_the_reference_has_no_single_rows(scored: Scored) -> None:
    runs = scored({"Low": [rights(0.4)], "High": [rights(0.9)]})
    EvaluationItem.objects.filter(evaluation__run=runs[0]).delete()
    assert sentence(compared(runs)).startswith(f"The reference, Low #{runs[0].pk}, has no result")


def test_the_base_model_has_a_row_even_if_another_run_scored_it(scored: Scored) -> None:
    runs = scored({"Low": [rights(0.4)], "High": [rights(0.9)]})
    runs[1].evaluations.filter(subject="base").delete()
    assert list(compared(again(runs[1:])).result.bases) == [str(runs[1].base_model)]


def test_it_counts_once_and_asks_the_cache_afterwards(scored: Scored) -> None:
    runs = scored(THREE)
    before = compared(runs).result
    EvaluationItem.objects.all().delete()
    assert compared(runs).result == before


def test_two_and_twelve_runs_take_the_same_queries(scored: Scored) -> None:
    counts = []
    for arms in (2, 12):
        runs = scored({f"{arms}-{place}": [rights(0.5, count=5, seed=place)] for place in range(arms)})
        with CaptureQueriesContext(
            connection,
        ) as seen:
            assert compared(runs).result.arms
        counts.append(len([one for one in seen if "dashboard_" in one["sql"]]))
    assert counts[0] == counts[1] == 3
