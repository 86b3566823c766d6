"""A plan's power, and the chance that further seeds decide, against the formulas and drawn numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy

from tests.workers.statistics.scores import model_of
from workers.statistics.looks import level_at
from workers.statistics.power import Design, chance_to_decide, seeds_to_decide
from workers.statistics.variance import Contrast
from workers.statistics.verdicts import Difference, compare

# Six arms, five seeds, a thousand rows.
DESIGN = Design(arms=6, seeds=5, items=1000, groups=1000, item_variance=0.15, seed_spread=0.015)


def difference_of(mean: float, *, of_items: float, of_seeds: float, of_flips: float = 0.0) -> Difference:
    """Return a difference after a first look of three seeds."""
    contrast = Contrast(mean, of_items, of_seeds, of_flips, freedom=10.0)
    return Difference(contrast, seeds=(1, 2, 3), items=400, groups=400, variances=(contrast.variance,))


# The plan


def parts_of(seeds: int) -> tuple[float, float]:
    return 0.15 / 1000 + 2 / 1000**2, 2 * 0.015**2 / seeds


def freedom_of_design() -> float:
    items, seeds = parts_of(5)
    return (items + seeds) ** 2 / (items**2 / 999 + (seeds + items / 2) ** 2 / 20)


def test_detectable_difference_by_the_formula() -> None:
    freedom = freedom_of_design()
    alpha = level_at((sum(parts_of(3)), sum(parts_of(5))))
    factor = scipy.stats.t.ppf(1 - alpha / 2 / 5, freedom) + scipy.stats.t.ppf(0.8, freedom)
    assert DESIGN.detectable_difference == pytest.approx(factor * math.sqrt(sum(parts_of(5))))
    assert DESIGN.detectable_difference == pytest.approx(0.0608, abs=0.0001)


def test_chance_that_an_equal_arm_is_as_good_by_the_formula() -> None:
    freedom = freedom_of_design()
    quantile = scipy.stats.t.ppf(1 - 0.045 / 5, freedom)
    expected = scipy.stats.t.cdf(0.05 / math.sqrt(sum(parts_of(5))) - quantile, freedom)
    assert DESIGN.chance_if_equal(0.05) == pytest.approx(expected)
    assert DESIGN.chance_if_equal(0.02) < DESIGN.chance_if_equal(0.03) < DESIGN.chance_if_equal(0.05)


def test_two_arms_are_not_paired_by_seed() -> None:
    pair, three = (replace(DESIGN, arms=arms) for arms in (2, 3))
    items, seeds = parts_of(5)
    freedom = (items + seeds) ** 2 / (items**2 / 999 + (seeds + items / 2) ** 2 / 8)
    factor = scipy.stats.t.ppf(
        1 - level_at((sum(parts_of(3)), sum(parts_of(5)))) / 2, freedom
    ) + scipy.stats.t.ppf(0.8, freedom)
    assert pair.detectable_difference == pytest.approx(factor * math.sqrt(items + seeds))
    # With a single comparison the interval's quantile is beyond Holm's.
    good = scipy.stats.t.cdf(
        0.05 / math.sqrt(items + seeds) - scipy.stats.t.ppf(1 - 0.045 / 2, freedom), freedom
    )
    assert pair.chance_if_equal(0.05) == pytest.approx(good)
    assert pair.detectable_difference < three.detectable_difference, "one comparison less for Holm"


def test_bottleneck_is_the_larger_part() -> None:
    assert DESIGN.items_part == pytest.approx(parts_of(5)[0])
    assert DESIGN.seeds_part == pytest.approx(parts_of(5)[1])
    assert not DESIGN.seeds_are_bottleneck
    assert replace(DESIGN, seed_spread=0.03).seeds_are_bottleneck
    assert replace(DESIGN, groups=50).items_part > DESIGN.items_part, "rows of one group say the same thing"


def test_rows_for_a_margin_are_the_fewest_that_suffice() -> None:
    rows = DESIGN.items_for(0.06)
    assert rows
    for items, is_enough in ((rows, True), (rows - 1, False)):
        assert (replace(DESIGN, items=items, groups=items).detectable_difference <= 0.06) == is_enough
    grouped = replace(DESIGN, groups=500).items_for(0.06)
    assert grouped == pytest.approx(2 * rows, abs=2)


def test_no_number_of_rows_helps_where_seeds_are_the_bottleneck() -> None:
    assert replace(DESIGN, seed_spread=0.03).items_for(0.05) is None
    assert DESIGN.items_for(0.0) is None


@pytest.mark.parametrize("change", [{"seeds": 2}, {"items": 19, "groups": 19}, {"groups": 4}])
def test_indicative_plan_promises_nothing(change: dict[str, int]) -> None:
    design = replace(DESIGN, **change)
    assert design.is_indicative
    assert not DESIGN.is_indicative
    assert design.detectable_difference == math.inf
    assert design.chance_if_equal(0.5) == 0.0
    assert design.items_for(0.05) is None


def test_study_without_any_spread_shows_any_difference() -> None:
    still = replace(DESIGN, item_variance=0.0, seed_spread=0.0, items=10**6, groups=10**6)
    assert still.detectable_difference < 1e-4


# Further seeds


@pytest.mark.parametrize("margin", [0.03, None])
@pytest.mark.parametrize("mean", [0.02, -0.01, -0.07])
def test_chance_to_decide_is_that_of_drawn_later_estimates(mean: float, margin: float | None) -> None:
    """Three seeds become seven: items stay, of the seeds' part 3/7 is left."""
    of_items, of_seeds = 2e-4, 3e-4
    difference = difference_of(mean, of_items=of_items, of_seeds=of_seeds / 2, of_flips=of_seeds / 2)
    # The flips are a part of the items' variance.
    now = of_items + of_seeds / 2
    variance = now - of_seeds * 4 / 7
    drawn = np.random.default_rng(1).standard_t(10, size=200_000)
    later = mean + math.sqrt(of_seeds * 4 / 7) * drawn
    reach = scipy.stats.t.ppf(1 - level_at((now, variance)) / 2, 10) * math.sqrt(variance)
    decided = (later - reach > -(margin or 0)) | (later + reach < -(margin or 0))
    assert chance_to_decide(difference, margin, 4) == pytest.approx(decided.mean(), abs=0.005)


def test_seeds_that_all_agree_have_no_further_news() -> None:
    assert chance_to_decide(difference_of(0.01, of_items=1e-4, of_seeds=0.0), 0.03, 6) == 0.0


def test_one_further_seed_after_one_is_no_verdict() -> None:
    single = replace(difference_of(0.5, of_items=1e-4, of_seeds=1e-4), seeds=(1,))
    assert chance_to_decide(single, 0.03, 1) == 0.0
    assert chance_to_decide(single, 0.03, 2) > 0.8


def test_fewest_seeds_that_decide() -> None:
    difference = difference_of(0.04, of_items=2e-5, of_seeds=6e-4)
    further = seeds_to_decide(difference, 0.03)
    assert further
    assert (3 + further) % 2 == 1, "at a look: 5, 7, 9 seeds"
    assert (
        chance_to_decide(difference, 0.03, further) >= 0.8 > chance_to_decide(difference, 0.03, further - 2)
    )
    assert seeds_to_decide(difference, 0.03, most=3 + further - 2) is None


def test_arm_that_hangs_on_its_rows_asks_for_no_seeds() -> None:
    assert seeds_to_decide(difference_of(-0.01, of_items=4e-4, of_seeds=1e-5), 0.03) is None


def test_items_that_flip_against_each_other_leave_a_variance() -> None:
    """Two seeds, of which each gets right what the other gets wrong: their mean is the same on all items."""
    halves = np.array([1.0, 0.0] * 50)
    scores = np.array([[halves, 1 - halves], [np.full(100, 0.5)] * 2])
    difference = compare(model_of(scores), 0, 1)
    assert difference
    assert difference.contrast.flip_variance > difference.contrast.item_variance
    difference = replace(difference, variances=(difference.contrast.variance,))
    assert 0 < chance_to_decide(difference, 0.01, 1) < 1
