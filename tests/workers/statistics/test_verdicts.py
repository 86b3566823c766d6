"""Verdicts against simulated studies whose truth is known, and against arithmetic done by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import norm, t

from workers.statistics.verdicts import (
    BETTER,
    INDICATIVE_ONLY,
    INFERIOR,
    NOT_ENOUGH_EVIDENCE,
    NOT_INFERIOR,
    Scores,
    compare,
    detectable_difference,
    estimate,
    holm,
    items_needed,
    kept_gain,
    outcome,
    seeds_needed,
)

DRAWS = 600
# Few enough to be drawn one by one, and so many that they are drawn in bags.
FEW, MANY = 150, 1200
# Simulated studies of a group share their draws of items, as all arms of a comparison do.
SHARED = 50
# Simulated studies and the tolerance of their share: `make proof` runs many, `make test` a seeded sample.
STUDIES, SAMPLED, SAMPLE_TOLERANCE = 400, 40, 0.06


def simulations(names: str, cells: Sequence[tuple[float, ...]], sampled: int) -> pytest.MarkDecorator:
    """Parametrize with all cells in the proof, and with a sample of one of them."""
    proof = [pytest.param(*cell, STUDIES, 0.0, marks=pytest.mark.proof) for cell in cells]
    return pytest.mark.parametrize(
        f"{names}, studies, tolerance", [*proof, (*cells[sampled], SAMPLED, SAMPLE_TOLERANCE)]
    )


def study(
    random: np.random.Generator, *, arms: int, seeds: int, items: int, seed_spread: float
) -> list[Scores]:
    """Right-or-wrong scores of arms that are equally good in truth.

    Items differ in difficulty. `seed_spread` is the standard deviation of a difference between two arms over
    seeds, in standard errors of the items.
    """
    difficulty = 1.2 * random.normal(size=items)
    shift = seed_spread * math.sqrt(0.15 / items) / 0.35 / math.sqrt(2)
    return [
        (difficulty + random.normal(size=(seeds, items)) + shift * random.normal(size=(seeds, 1)) > 0).astype(
            np.float64
        )
        for _arm in range(arms)
    ]


@simulations(
    "items, seeds, seed_spread",
    [
        (items, seeds, spread)
        for items in (FEW, MANY)
        for seeds, spread in [(3, 0.0), (3, 1.0), (3, 2.0), (5, 2.0), (3, 4.0)]
    ],
    sampled=2,
)
def test_intervals_cover_the_truth(
    seeds: int, seed_spread: float, items: int, studies: int, tolerance: float
) -> None:
    random = np.random.default_rng(11)
    covered = 0
    for number in range(studies):
        arm, reference = study(random, arms=2, seeds=seeds, items=items, seed_spread=seed_spread)
        found = compare(arm, reference, draws=DRAWS, seed=number // SHARED)
        covered += found.low <= 0 <= found.high
    print(f"{items} items, {seeds} seeds, spread {seed_spread}: {covered / studies:.1%} covered")
    assert covered / studies >= 0.93 - tolerance


def sizes_of(random: np.random.Generator, documents: int) -> list[int]:
    """Return document sizes: many short ones and a few long ones."""
    return [int(size) for size in random.geometric(0.2, size=documents)]


@simulations("documents", [(10,), (40,), (1000,)], sampled=1)
def test_intervals_cover_the_truth_if_items_share_documents(
    documents: int, studies: int, tolerance: float
) -> None:
    """Each arm is better on some documents and worse on others, so drawing single rows claims too much."""
    random, seeds = np.random.default_rng(15), 3
    covered = by_rows = 0
    for number in range(studies):
        clusters = np.repeat(np.arange(documents), sizes_of(random, documents))
        taste = random.normal(size=(2, documents))[:, clusters]
        latent = taste[:, np.newaxis] + random.normal(size=(2, seeds, len(clusters)))
        arm, reference = (latent > 0).astype(np.float64)
        found = compare(arm, reference, clusters.tolist(), draws=DRAWS, seed=number // SHARED)
        plain = compare(arm, reference, draws=DRAWS, seed=number // SHARED)
        covered += found.low <= 0 <= found.high
        by_rows += plain.low <= 0 <= plain.high
    print(f"{documents} documents: {covered / studies:.1%} covered, {by_rows / studies:.1%} by single rows")
    assert covered / studies >= 0.91 - tolerance, "0.93 within the error of 400 studies"
    assert by_rows / studies < 0.85 + tolerance


@simulations(
    "items, seed_spread", [(items, spread) for items in (FEW, MANY) for spread in (0.0, 2.0)], sampled=3
)
def test_no_arm_is_called_better_by_chance(
    seed_spread: float, items: int, studies: int, tolerance: float
) -> None:
    random = np.random.default_rng(12)
    wrong = 0
    for number in range(studies):
        reference, *arms = study(random, arms=6, seeds=3, items=items, seed_spread=seed_spread)
        found = [compare(arm, reference, draws=DRAWS, seed=number // SHARED) for arm in arms]
        adjusted = holm([one.p for one in found])
        wrong += any(outcome(one, p, 0.0) == BETTER for one, p in zip(found, adjusted, strict=True))
    print(f"{items} items, 5 arms, spread {seed_spread}: {wrong / studies:.1%} false positives")
    assert wrong / studies <= 0.05 + tolerance


@simulations("items", [(400,), (MANY,)], sampled=0)
def test_detectable_difference_has_a_power_of_80_percent(items: int, studies: int, tolerance: float) -> None:
    """Holds for the stated variance of one item's difference, which the planner takes."""
    random, seeds = np.random.default_rng(13), 3
    # Arms that agree within a seed as much as the planner assumes: 15 % of the items differ.
    promised = detectable_difference(items, variance=0.15)
    detected = 0
    for number in range(studies):
        difference = random.choice(
            [1.0, -1.0, 0.0], size=items, p=[0.075 + promised / 2, 0.075 - promised / 2, 0.85]
        )
        arm = np.tile(difference, (seeds, 1))
        found = compare(arm, np.zeros_like(arm), draws=DRAWS, seed=number // SHARED)
        detected += found.low > 0
    print(f"{items} items: a true difference of {promised:.3f} was detected in {detected / studies:.1%}")
    assert detected / studies >= 0.77 - tolerance, "0.80 within the error of 200 studies"


def test_detectable_differences_of_the_formula() -> None:
    assert [round(100 * detectable_difference(items), 1) for items in (200, 500, 1000, 5000)] == [
        7.7,
        4.9,
        3.4,
        1.5,
    ]
    assert items_needed(0.05) == pytest.approx(471, abs=1)
    assert detectable_difference(1, variance=1.0, arms=6) == pytest.approx(3.48, abs=0.01)


def test_holm_adjustment_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_comparison_is_paired_by_seed_and_item() -> None:
    """The difference is the same for each item and seed, so the interval has no width."""
    reference = np.random.default_rng(1).normal(size=(3, 50))
    found = compare(reference + 0.25, reference)
    assert (found.difference, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_equal_scores_have_an_interval_of_the_rule_of_three() -> None:
    same = np.ones((3, 50))
    found = compare(same, same)
    assert (found.low, found.high, found.p) == (-0.06, 0.06, 1.0)


def test_documents_are_resampled_instead_of_rows() -> None:
    random = np.random.default_rng(2)
    documents = random.normal(size=20).repeat(10)
    differences = np.tile(documents, (3, 1))
    rows = compare(differences, np.zeros_like(differences))
    grouped = compare(differences, np.zeros_like(differences), clusters=list(np.arange(20).repeat(10)))
    assert grouped.high - grouped.low > 2 * (rows.high - rows.low)


def test_documents_of_one_row_are_rows() -> None:
    random = np.random.default_rng(16)
    arm, reference = random.normal(size=(3, 80)), random.normal(size=(3, 80))
    assert compare(arm, reference, clusters=list(range(80))) == compare(arm, reference)


def test_documents_are_weighted_by_their_rows() -> None:
    """One document of 90 rows is right, ten of one row are wrong: the mean is 0.9 and hangs on the one."""
    scores = np.array([[1.0] * 90 + [0.0] * 10] * 3)
    clusters = [0] * 90 + list(range(1, 11))
    found = estimate(scores, clusters)
    assert found.mean == pytest.approx(0.9)
    assert found.low < 0.3, "in every third draw the one document is missing"


def test_bags_of_documents_give_the_interval_of_the_formula() -> None:
    random = np.random.default_rng(17)
    clusters = np.repeat(np.arange(3000), sizes_of(random, 3000))
    differences = (random.normal(size=3000)[clusters] + random.normal(size=len(clusters)))[np.newaxis]
    found = compare(differences, np.zeros_like(differences), clusters.tolist())
    # The variance of a ratio of sums over documents (Cochran, Sampling Techniques, 1977, ch. 6).
    rest = np.bincount(clusters, differences[0] - differences.mean())
    reach = 1.96 * np.sqrt((rest**2).sum()) / len(clusters)
    assert found.high - found.low == pytest.approx(2 * reach, rel=0.08)
    assert (found.groups, found.items) == (3000, len(clusters))


def test_kept_gain_is_less_certain_if_rows_share_documents() -> None:
    random = np.random.default_rng(18)
    documents = np.arange(30).repeat(20)
    base = np.zeros((1, 600))
    reference = np.tile(random.random(30)[documents] < 0.7, (3, 1)).astype(np.float64)
    arm = np.where(np.tile(random.random(30)[documents] < 0.8, (3, 1)), reference, 0.0)
    rows = kept_gain(arm, reference, base, draws=DRAWS)
    grouped = kept_gain(arm, reference, base, documents.tolist(), draws=DRAWS)
    assert rows
    assert grouped
    assert grouped.mean == rows.mean
    assert grouped.high - grouped.low > 1.5 * (rows.high - rows.low)


def test_disagreeing_seeds_widen_the_interval_to_student_t() -> None:
    """With three seeds the interval reaches beyond t with 2 degrees of freedom, not just over the seeds."""
    shifts = np.array([[0.5], [-0.4], [0.1]])
    differences = np.random.default_rng(20).normal(0, 0.05, size=(3, 400)) + shifts
    found = compare(differences, np.zeros_like(differences))
    assert found.seed_variance > 2 * found.item_variance
    error = math.sqrt(found.item_variance + found.seed_variance)
    # Three seeds drawn three times: one and the same comes in every ninth draw, so 2.5 % are the lowest seed.
    spread = float(np.sqrt(((shifts - shifts.mean()) ** 2).mean() / 3))
    reach = (shifts.max() - shifts.mean()) * error / spread * t.ppf(0.975, 2) / norm.ppf(0.975)
    assert found.seeds_disagree
    assert found.high - found.difference == pytest.approx(reach, rel=0.05)
    assert found.high - found.difference > t.ppf(0.975, 2) * error


@pytest.mark.parametrize(
    ("shift", "expected"),
    [(0.10, BETTER), (0.0, NOT_INFERIOR), (-0.10, INFERIOR)],
)
def test_outcome_depends_on_the_margin(shift: float, expected: str) -> None:
    random = np.random.default_rng(4)
    reference = random.normal(size=(3, 2000))
    arm = reference + shift + random.normal(0, 0.3, size=(3, 2000))
    found = compare(arm, reference, draws=DRAWS)
    assert outcome(found, found.p, margin=0.03) == expected


def test_outcome_without_enough_evidence() -> None:
    random = np.random.default_rng(5)
    reference = random.normal(size=(3, 30))
    found = compare(reference + random.normal(-0.02, 0.5, size=(3, 30)), reference, draws=DRAWS)
    assert outcome(found, found.p, margin=0.02) == NOT_ENOUGH_EVIDENCE


def test_two_seeds_are_indicative_only() -> None:
    reference = np.random.default_rng(6).normal(size=(2, 500))
    found = compare(reference + 1, reference, draws=DRAWS)
    assert outcome(found, found.p, margin=0.03) == INDICATIVE_ONLY


def test_needed_number_of_seeds() -> None:
    random = np.random.default_rng(8)
    differences = random.normal(0, 0.05, size=(3, 400)) + np.array([[0.03], [0.0], [-0.03]])
    found = compare(differences, np.zeros_like(differences), draws=DRAWS)
    wanted = seeds_needed(found, margin=0.03)
    assert wanted is not None
    assert 3 < wanted <= 10
    assert seeds_needed(found, margin=0.0001) is None


def test_kept_gain_of_an_arm() -> None:
    random = np.random.default_rng(9)
    base = (random.random((1, 600)) < 0.2).astype(np.float64)
    reference = np.maximum(base, (random.random((3, 600)) < 0.5).astype(np.float64))
    arm = np.where(random.random((3, 600)) < 0.9, reference, base)
    found = kept_gain(arm, reference, base, draws=DRAWS)
    assert found is not None
    assert found.low < 0.9 < found.high
    assert found.mean == pytest.approx(0.9, abs=0.05)


def test_uncertain_gain_has_no_share() -> None:
    random = np.random.default_rng(10)
    base = random.normal(size=(1, 100))
    noise = base + random.normal(0, 0.5, size=(3, 100))
    assert kept_gain(noise, noise, base, draws=DRAWS) is None


def test_base_model_has_an_interval_from_one_row_of_scores() -> None:
    found = estimate(np.array([[1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0]]))
    assert found.mean == 0.625
    assert 0.1 < found.low < 0.5 < 0.8 < found.high < 1.1
