"""Levels of several looks against simulated estimates."""

from __future__ import annotations

import numpy as np
import pytest
import scipy

from workers.statistics.looks import level_at, look_sizes, spent_at

# Variances at 3, 5, 7 and 9 seeds: seeds alone, items and seeds, hardly any seeds.
SEEDS_ALONE = (1 / 3, 1 / 5, 1 / 7, 1 / 9)
MIXED = tuple(0.2 + part for part in SEEDS_ALONE)
MOSTLY_ITEMS = tuple(2.0 + part for part in SEEDS_ALONE)


def test_seeds_at_each_look() -> None:
    assert look_sizes(7, ended=[2, 4]) == [3, 4, 5, 7], "a study of 2 seeds got 2 and then 3 more"
    assert [look_sizes(seeds) for seeds in (2, 3, 4, 5, 9)] == [[2], [3], [3, 4], [3, 5], [3, 5, 7, 9]]


def test_error_spent_by_each_look() -> None:
    assert [spent_at(look) for look in (1, 2, 3, 4)] == pytest.approx([0.04, 0.045, 0.0475, 0.04875])
    assert spent_at(30) < 0.05 + 1e-12, "seeds beyond the plan find something left"


@pytest.mark.parametrize("variances", [SEEDS_ALONE, MIXED, MOSTLY_ITEMS])
def test_levels_spend_the_error_of_simulated_estimates(variances: tuple[float, ...]) -> None:
    """Estimates at looks j < k are normal with the correlation sqrt(V_k / V_j)."""
    looks = len(variances)
    correlation = [
        [np.sqrt(variances[max(j, k)] / variances[min(j, k)]) for j in range(looks)] for k in range(looks)
    ]
    random = np.random.default_rng(0)
    estimates = random.standard_normal((400_000, looks)) @ np.linalg.cholesky(correlation).T
    limits = scipy.stats.norm.isf([level_at(variances[: look + 1]) / 2 for look in range(looks)])
    is_beyond = np.abs(estimates) > limits
    crossed = [is_beyond[:, : look + 1].any(axis=1).mean() for look in range(looks)]
    assert crossed == pytest.approx([spent_at(look + 1) for look in range(looks)], abs=0.001)


def test_first_look_has_its_share_whatever_the_variance() -> None:
    assert level_at((0.5,)) == level_at((0.0,)) == pytest.approx(0.04)


@pytest.mark.parametrize("variances", [SEEDS_ALONE, MIXED, MOSTLY_ITEMS])
def test_level_falls_with_each_look(variances: tuple[float, ...]) -> None:
    levels = [level_at(variances[: look + 1]) for look in range(len(variances))]
    assert levels == sorted(levels, reverse=True)
    assert len(set(levels)) == len(levels)


def test_look_that_adds_nothing_has_a_level() -> None:
    """Equal variances, growing ones and none at all: closer than nearly the same data no look comes."""
    assert (
        level_at((1.0, 1.0))
        == level_at((1.0, 1.3))
        == level_at((0.0, 0.0))
        == pytest.approx(0.039, abs=0.001)
    )
