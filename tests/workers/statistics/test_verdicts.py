"""Verdicts against arithmetic by hand, and their rules at each look."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy
from numpy.typing import NDArray

from tests.workers.statistics.scores import constant_scores, model_of, samples_of, simulate_scores
from workers.statistics.looks import level_at
from workers.statistics.variance import Contrast, Sample, ScoreModel
from workers.statistics.verdicts import (
    BETTER,
    INDICATIVE_ONLY,
    INFERIOR,
    NOT_ENOUGH_EVIDENCE,
    NOT_INFERIOR,
    WORSE,
    Difference,
    Verdict,
    beats_chance,
    certain_pairs,
    compare,
    compare_arms,
    estimate,
    estimate_items,
    holm,
    kept_gain,
)

Matrix = NDArray[np.float64]

# A worked example: twenty items, two arms with two seeds, and the base model.
SMALL = np.array([[1, 1, 1, 0, 0] * 4, [1, 1, 0, 0, 1] * 4], dtype=float)
LARGE = np.array([[1, 1, 1, 1, 0] * 4, [1, 1, 1, 0, 0] * 4], dtype=float)
BASE = np.array([1, 0, 0, 0, 0] * 4, dtype=float)
ALONE = list(range(20))
# Five documents of two items beside ten of one.
DOCUMENTS = [1, 2, 3, 4, 5] * 2 + [*range(11, 21)]


def difference_of(
    mean: float, *, item_variance: float = 1e-4, freedom: float = 8.0, looks: tuple[float, ...] = ()
) -> Difference:
    contrast = Contrast(mean, item_variance, 0.0, 0.0, freedom)
    return Difference(contrast, seeds=(1, 2, 3), items=200, groups=200, variances=looks)


def judge_means(means: list[list[float]], margin: float | None = 0.05) -> dict[int, Verdict]:
    """Judge arms whose items all score the mean of their seed, against the first."""
    return compare_arms(constant_scores(means), 0, margin, is_share=False)


def outcomes(verdicts: dict[int, Verdict]) -> dict[int, str]:
    return {position: verdict.outcome for position, verdict in verdicts.items()}


# A worked example in plain numpy


def group_squares(rest: Matrix, groups: list[int]) -> float:
    """Return sum over groups of (sum of the residuals)^2 / n^2 * G / (G - 1)."""
    names = sorted(set(groups))
    sums = [sum(value for value, own in zip(rest, groups, strict=True) if own == name) for name in names]
    return sum(one**2 for one in sums) / len(rest) ** 2 * len(names) / (len(names) - 1)


def flips(scores: Matrix, groups: list[int]) -> float:
    rest = scores - scores.mean(axis=0)
    return sum(group_squares(row - row.mean(), groups) for row in rest) / (len(scores) - 1)


def error_and_freedom(
    by_item: Matrix, arms: list[tuple[float, Matrix]], groups: list[int]
) -> tuple[float, float]:
    """Return standard error and degrees of freedom of a weighted sum of two arms that are not paired."""
    count = len(set(groups))
    of_items = group_squares(by_item - by_item.mean(), groups) + 2 / count**2
    own = [weight**2 * arm.mean(axis=1).var(ddof=1) for weight, arm in arms]
    doubled = [weight**2 * flips(arm, groups) for weight, arm in arms]
    variance = of_items + max(0.0, sum(own) - sum(doubled)) / 2
    # Two seeds: one degree of freedom each.
    freedom = variance**2 / (of_items**2 / (count - 1) + sum((one / 2) ** 2 for one in own))
    return float(np.sqrt(variance)), max(1.0, freedom)


@pytest.mark.parametrize("groups", [ALONE, DOCUMENTS])
def test_worked_example_of_a_difference(groups: list[int]) -> None:
    error, freedom = error_and_freedom((SMALL - LARGE).mean(axis=0), [(1, SMALL), (-1, LARGE)], groups)
    found = compare(model_of(np.stack([LARGE, SMALL]), groups), 1, 0)
    assert found
    assert (found.mean, found.items, found.groups) == (pytest.approx(-0.1), 20, len(set(groups)))
    assert found.reach == pytest.approx(scipy.stats.t.ppf(0.975, freedom) * error)
    assert (found.low, found.high) == (found.mean - found.reach, found.mean + found.reach)
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(0.1 / error, freedom))
    assert found.p_above(-0.3) == pytest.approx(scipy.stats.t.sf(0.2 / error, freedom))


@pytest.mark.parametrize("groups", [ALONE, DOCUMENTS])
def test_worked_example_of_means(groups: list[int]) -> None:
    model = model_of(np.stack([LARGE, SMALL]), groups)
    for position, arm in ((0, LARGE), (1, SMALL)):
        error, freedom = error_and_freedom(arm.mean(axis=0), [(1, arm)], groups)
        found = estimate(model, position)
        assert found.mean == pytest.approx(arm.mean())
        assert found.high - found.mean == pytest.approx(scipy.stats.t.ppf(0.975, freedom) * error)
    error, freedom = error_and_freedom(BASE, [], groups)
    assert estimate_items(BASE[np.newaxis], groups).low == pytest.approx(
        0.2 - scipy.stats.t.ppf(0.975, freedom) * error
    )


def test_worked_example_of_the_kept_gain() -> None:
    """The arm gains 0.4 of 0.6; the interval is that of arm - 2/3 * reference - 1/3 * base, over 0.6."""
    large = np.array([[1, 1, 1, 1, 0] * 4, [0, 1, 1, 1, 1] * 4], dtype=float)
    by_item = (SMALL - 2 / 3 * large).mean(axis=0) - BASE / 3
    error, freedom = error_and_freedom(by_item, [(1, SMALL), (2 / 3, large)], ALONE)
    found = kept_gain(model_of(np.stack([large, SMALL])), 1, 0, BASE, (0, 1))
    assert found
    assert found.mean == pytest.approx(2 / 3)
    assert found.high - found.mean == pytest.approx(scipy.stats.t.ppf(0.975, freedom) * error / 0.6)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_gain_of_two_seeds_that_differ_has_no_share() -> None:
    """The reference gains 60 points with one seed and 40 with the other."""
    many = np.tile(np.stack([LARGE, SMALL]), 5)
    assert kept_gain(model_of(many), 1, 0, np.tile(BASE, 5), (0, 1)) is None


# Differences


def test_two_arms_are_compared_by_welchs_test_of_their_seeds() -> None:
    means = [[0.70, 0.74, 0.71, 0.69], [0.66, 0.60, 0.69, 0.61]]
    found = compare(ScoreModel(constant_scores(means), is_share=False), 1, 0)
    expected = scipy.stats.ttest_ind(means[1], means[0], equal_var=False)
    assert found
    assert found.p == pytest.approx(expected.pvalue)
    assert found.contrast.freedom == pytest.approx(expected.df)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


@pytest.mark.parametrize("looks", [(), (2e-4,), (2e-4, 1e-4)])
def test_interval_and_p_value_agree(looks: tuple[float, ...]) -> None:
    for mean in np.linspace(-0.06, 0.06, 241):
        found = difference_of(float(mean), looks=looks)
        assert (found.p < found.alpha) == (found.low > 0 or found.high < 0)
        assert (found.p_above(-0.02) < found.alpha / 2) == (found.low > -0.02)


def test_later_look_has_a_wider_interval_of_the_same_estimate() -> None:
    once, first, second = (difference_of(0.01, looks=looks) for looks in ((), (2e-4,), (2e-4, 1e-4)))
    assert once.reach < first.reach < second.reach
    assert [one.alpha for one in (once, first, second)] == [0.05, pytest.approx(0.04), level_at((2e-4, 1e-4))]
    assert [one.look for one in (once, first, second)] == [1, 1, 2]


def test_arms_are_compared_on_the_seeds_that_both_have() -> None:
    samples = samples_of(simulate_scores(np.random.default_rng(1), seeds=4, items=60, spread=0.02))
    samples[1] = Sample((1, 3, 7), samples[1].scores[:3])
    samples[2] = Sample((8, 9), samples[2].scores[:2])
    model = ScoreModel(samples)
    shared = compare(model, 1, 0)
    assert shared
    assert shared.seeds == (1, 3)
    reference = samples[0].scores[[1, 3]]
    assert shared.mean == pytest.approx(samples[1].scores[:2].mean() - reference.mean())
    assert compare(model, 2, 0) is None


def test_equal_scores_differ_by_nothing() -> None:
    same = np.tile((np.random.default_rng(2).random(80) < 0.7).astype(float), (3, 3, 1))
    found = compare(model_of(same), 1, 0)
    assert found
    assert (found.mean, found.p) == (0.0, 1.0)
    assert found.low == -found.high < 0
    loss = compare(model_of(same, is_share=False), 1, 0)
    assert loss
    assert (loss.low, loss.high, loss.p) == pytest.approx((0, 0, 1), abs=1e-9)


# Gain kept


def test_share_of_the_gain_that_an_arm_keeps() -> None:
    random = np.random.default_rng(9)
    base = (random.random(600) < 0.2).astype(float)
    reference = np.maximum(base, random.random((3, 600)) < 0.5)
    arm = np.where(random.random((3, 600)) < 0.9, reference, base)
    model = model_of(np.stack([reference, arm, reference]))
    found, whole = (kept_gain(model, position, 0, base, (0, 1, 2)) for position in (1, 2))
    assert found
    assert found.low < 0.9 < found.high
    assert found.mean == pytest.approx((arm.mean() - base.mean()) / (reference.mean() - base.mean()))
    assert whole
    assert whole.mean == 1.0


def test_gain_of_zero_has_no_share() -> None:
    scores = simulate_scores(np.random.default_rng(10), seeds=3, items=100, spread=0.02)
    assert kept_gain(model_of(scores), 1, 0, scores[0].mean(axis=0), (0, 1, 2)) is None
    assert kept_gain(model_of(scores), 1, 0, scores[0, 0], (0, 1, 2)) is None


# Several arms


def test_holm_adjustment_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_both_families_count_every_arm() -> None:
    scores = simulate_scores(
        np.random.default_rng(11), seeds=3, items=400, spread=0.01, shifts=(0, 0.05, 0.02, -0.02, 0, -0.06)
    )
    model, verdicts = model_of(scores), compare_arms(samples_of(scores), 0, 0.05)
    differences = [compare(model, arm, 0) for arm in range(1, 6)]
    by_equality = holm([one.p for one in differences if one])
    by_margin = holm([one.p_above(-0.05) for one in differences if one])
    assert [verdicts[arm].p_adjusted for arm in range(1, 6)] == pytest.approx(by_equality)
    assert [verdicts[arm].p_margin_adjusted for arm in range(1, 6)] == pytest.approx(by_margin)


def test_what_passes_alone_needs_more_among_others() -> None:
    """An arm above the limit by its own p-value or interval, and not after Holm, stays open."""
    random = np.random.default_rng(17)
    not_better = not_good = 0
    for _study in range(40):
        shifts = (0, 0.035, 0.035, -0.01, -0.01, -0.01)
        scores = simulate_scores(random, seeds=3, items=400, spread=0.01, shifts=shifts)
        for verdict in compare_arms(samples_of(scores), 0, 0.05).values():
            found = verdict.difference
            if found.low > 0 and verdict.p_adjusted >= found.alpha:
                not_better += 1
                assert verdict.outcome != BETTER
            if found.low > -0.05 and verdict.p_margin_adjusted >= found.alpha:
                not_good += 1
                assert verdict.outcome == NOT_ENOUGH_EVIDENCE
    assert not_better
    assert not_good


def test_certain_pairs_have_the_better_arm_first() -> None:
    scores = simulate_scores(
        np.random.default_rng(12), seeds=3, items=400, spread=0.005, shifts=(0, 0.2, 0, -0.2)
    )
    assert sorted(certain_pairs(model_of(scores), 0.05)) == [(0, 3), (1, 0), (1, 2), (1, 3), (2, 3)]
    assert certain_pairs(model_of(scores[:, :2]), 0.05) == [], "two seeds are indicative"


def test_certain_pairs_are_those_of_holm_over_all_pairs() -> None:
    random = np.random.default_rng(18)
    by_themselves = certain = 0
    for _study in range(10):
        shifts = (0, 0.03) * 3
        model = model_of(simulate_scores(random, seeds=3, items=400, spread=0.01, shifts=shifts))
        differences = [compare(model, *pair) for pair in itertools.combinations(range(6), 2)]
        p_values = [one.p for one in differences if one]
        by_themselves += sum(p < 0.05 for p in p_values)
        assert len(certain_pairs(model, 0.05)) == sum(p < 0.05 for p in holm(p_values))
        certain += len(certain_pairs(model, 0.05))
    assert by_themselves > certain


# Outcomes


@pytest.mark.parametrize(
    ("shift", "outcome", "without_margin"),
    [
        (0.10, BETTER, BETTER),
        (0.0, NOT_INFERIOR, NOT_ENOUGH_EVIDENCE),
        (-0.02, NOT_INFERIOR, WORSE),
        (-0.05, NOT_ENOUGH_EVIDENCE, WORSE),
        (-0.10, INFERIOR, WORSE),
    ],
)
def test_outcome_of_an_arm(shift: float, outcome: str, without_margin: str) -> None:
    reference, other = [0.70, 0.71, 0.69], [0.60, 0.60, 0.61]
    arm = [0.705 + shift, 0.705 + shift, 0.69 + shift]
    assert outcomes(judge_means([reference, arm, other]))[1] == outcome
    assert outcomes(judge_means([reference, arm, other], margin=None))[1] == without_margin


@pytest.mark.parametrize(("p", "outcome"), [(0.019, NOT_INFERIOR), (0.03, NOT_ENOUGH_EVIDENCE)])
def test_as_good_needs_the_whole_interval_above_the_margin(p: float, outcome: str) -> None:
    """At the first look's level of 4 % the interval leaves 2 % below."""
    means = [[0.70, 0.71, 0.69], [0.71, 0.70, 0.68]]
    found = compare(ScoreModel(constant_scores(means), is_share=False), 1, 0)
    assert found
    margin = float(scipy.stats.t.isf(p, found.contrast.freedom)) * found.contrast.error - found.mean
    assert found.p_above(-margin) == pytest.approx(p)
    assert outcomes(judge_means(means, margin))[1] == outcome


def test_all_right_and_all_wrong_are_as_good_as_their_like() -> None:
    for value in (0.0, 1.0):
        assert outcomes(compare_arms(samples_of(np.full((3, 3, 200), value)), 0, 0.02)) == {
            1: NOT_INFERIOR,
            2: NOT_INFERIOR,
        }
        # Thirty items, all right: of the next thirty, one or two may be wrong.
        assert (
            outcomes(compare_arms(samples_of(np.full((3, 3, 30), value)), 0, 0.02))[1] == NOT_ENOUGH_EVIDENCE
        )


def test_too_few_seeds_groups_or_items_give_no_verdict() -> None:
    scores = np.stack([np.zeros((3, 40)), np.ones((3, 40)), np.zeros((3, 40))])
    assert outcomes(compare_arms(samples_of(scores), 0, 0.02))[1] == BETTER
    assert outcomes(compare_arms(samples_of(scores[:, :2]), 0, 0.02))[1] == INDICATIVE_ONLY
    assert outcomes(compare_arms(samples_of(scores[:, :, :19]), 0, 0.02))[1] == INDICATIVE_ONLY
    assert outcomes(compare_arms(samples_of(scores[:, :, :1]), 0, 0.02))[1] == INDICATIVE_ONLY
    for groups in (1, 4):
        clusters = (np.arange(40) % groups).tolist()
        assert outcomes(compare_arms(samples_of(scores), 0, 0.02, clusters))[1] == INDICATIVE_ONLY


def test_arm_of_one_seed_gets_no_verdict_and_leaves_those_of_the_others() -> None:
    scores = simulate_scores(
        np.random.default_rng(13), seeds=3, items=300, spread=0.01, shifts=(0, -0.2, 0, 0)
    )
    samples = samples_of(scores)
    samples[2] = samples[2].of_seeds([1])
    samples[3] = Sample((7, 8, 9), samples[3].scores)
    found = outcomes(compare_arms(samples, 0, 0.05))
    assert found == {1: INFERIOR, 2: INDICATIVE_ONLY}, "the last arm shares no seed with the reference"


# Several looks


def test_four_of_four_may_be_guessed_and_five_of_five_may_not() -> None:
    assert not beats_chance(4, 4, choices=2), "1 in 16"
    assert beats_chance(5, 5, choices=2), "1 in 32"
