"""Unsaved studies: chosen runs as arms, common rows, seeds and verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from dashboard.charts.study_charts import pareto
from dashboard.models import BaseModel, Dataset, EvaluationItem, Project, TrainingRun, User
from dashboard.models.studies.results.comparison import UnsavedStudy, arms_of
from dashboard.models.studies.results.limits import warnings
from dashboard.models.studies.results.verdict_sentence import verdict_sentence
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
    """Return a function that makes evaluated runs from the scores of their rows."""
    return lambda arms: scored_runs(project, dataset, base_model, ed, arms)


def refetched(runs: Sequence[TrainingRun]) -> list[TrainingRun]:
    """Return the runs as the page fetches them."""
    found = TrainingRun.objects.with_facts().with_scores().in_bulk([run.pk for run in runs])
    return [found[run.pk] for run in runs]


def compared(runs: Sequence[TrainingRun], metric: str = "", reference: str = "") -> UnsavedStudy:
    return UnsavedStudy.of(runs, metric, reference)


def test_runs_that_differ_in_the_seed_are_one_arm(scored: Scored) -> None:
    low, high = arms_of(scored(THREE))
    assert (low.seeds, high.seeds) == ([1, 2, 3], [1, 2, 3])


def test_repeated_seed_counts_once(scored: Scored) -> None:
    runs = scored({"Low": [rights(0.4)], "High": [rights(0.9)]})
    twin = make_run(
        runs[0].project,
        runs[0].dataset_version.dataset,
        runs[0].base_model,
        name="Twin",
        seed=1,
        learning_rate=1e-4,
    )
    comparison = compared(refetched([*runs, twin]))
    assert [len(arm.runs) for arm in comparison.arm_list] == [1, 1]
    assert any(f"not counted: Twin #{twin.pk}" in text for text in warnings(comparison))


def test_verdict_on_three_seeds_names_the_difference(scored: Scored) -> None:
    runs = scored(THREE)
    said = verdict_sentence(compared(runs))
    first = np.array([np.array(THREE["High"][seed]) - np.array(THREE["Low"][seed]) for seed in range(3)])
    assert f"High #{runs[3].pk} is better than Low #{runs[0].pk} by {100 * first.mean():.1f}" in said
    assert "95 % interval" in said


def test_verdict_follows_the_chosen_reference(scored: Scored) -> None:
    runs = scored(THREE)
    # Any run of the arm pins it.
    said = verdict_sentence(compared(runs, reference=str(runs[4].pk)))
    assert f"Low #{runs[0].pk} is worse than High #{runs[3].pk}" in said


def test_overlapping_arms_are_not_ranked(scored: Scored) -> None:
    runs = scored(
        {name: [rights(0.5, seed=seed + shift) for seed in range(3)] for name, shift in (("A", 0), ("B", 9))}
    )
    assert verdict_sentence(compared(runs)).startswith("Not enough evidence to tell B")


def test_different_seeds_are_paired_in_order(
    scored: Scored, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    runs = scored({"Low": [rights(0.4)]})
    other = make_run(project, dataset, base_model, name="High", seed=77, learning_rate=0.05)
    score(publish(other), rights(0.9, seed=8))
    comparison = compared(refetched([*runs, other]))
    assert len(comparison.result.comparisons) == 1
    assert any("No seed in common" in text for text in warnings(comparison))


def test_arms_are_compared_on_common_rows(
    scored: Scored, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    runs = scored({"Low": [rights(0.4)]})
    other = make_run(project, dataset, base_model, name="High", learning_rate=0.05)
    score(publish(other), rights(0.9, count=40), first_row=31)
    comparison = compared(refetched([*runs, other]))
    assert comparison.result.items == 30
    assert "Compared on the 30 rows that all were scored on; some were scored on up to 60." in warnings(
        comparison
    )


def test_runs_of_different_datasets_are_not_compared(
    scored: Scored, project: Project, base_model: BaseModel, ed: User
) -> None:
    runs = scored({"Low": [rights(0.4)]})
    other = make_run(project, make_dataset(project, "Mails", by=ed), base_model, by=ed, name="Mails")
    score(publish(other), rights(0.9))
    comparison = compared(refetched([*runs, other]))
    assert comparison.result.comparisons == []
    assert any(f"so not compared with it: Mails #{other.pk}" in text for text in warnings(comparison))


def test_different_maximum_lengths_are_warned_of(
    scored: Scored, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    runs = scored({"Low": [rights(0.4)]})
    other = make_run(project, dataset, base_model, name="High", seed=1, max_length=32)
    score(publish(other), rights(0.9))
    assert any("different maximum lengths" in text for text in warnings(compared(refetched([*runs, other]))))


def test_tied_arms_are_grouped_in_the_cost_chart(scored: Scored) -> None:
    alike: Arms = {
        name: [rights(0.5, seed=seed + shift) for seed in range(3)] for name, shift in (("A", 0), ("B", 9))
    }
    for arms, grouped in ((alike, True), (THREE, False)):
        drawn = pareto(compared(scored(arms)), "trainable_parameters")
        assert drawn
        assert bool(drawn["tied"]) == grouped


def test_reference_without_rows_has_no_verdict(scored: Scored) -> None:
    runs = scored({"Low": [rights(0.4)], "High": [rights(0.9)]})
    EvaluationItem.objects.filter(evaluation__run=runs[0]).delete()
    assert verdict_sentence(compared(runs)).startswith(f"The reference, Low #{runs[0].pk}, has no result")


def test_base_evaluation_of_another_run_is_used(scored: Scored) -> None:
    runs = scored({"Low": [rights(0.4)], "High": [rights(0.9)]})
    runs[1].evaluations.filter(subject="base").delete()
    assert list(compared(refetched(runs[1:])).result.bases) == [str(runs[1].base_model)]


def test_result_is_cached(scored: Scored) -> None:
    runs = scored(THREE)
    before = compared(runs).result
    EvaluationItem.objects.all().delete()
    assert compared(runs).result == before
