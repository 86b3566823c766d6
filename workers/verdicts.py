"""Per-item scores of several arms become differences, intervals and one outcome per arm.

Scores are arrays of shape [seeds, items]; arms and reference are paired by seed and by item. Differences are
arm minus reference, in the metric's own unit, higher is better. Knows nothing of rows, runs or words.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm, t

Scores = NDArray[np.float64]

DRAWS = 10_000
LEVEL = 0.95
# More items than this are drawn in so many bags: the same spread, and draws that fit into memory.
BAGS = 500
# With fewer seeds the spread between them is a guess, so numbers are shown and nothing is decided.
MIN_SEEDS = 3
# 5 % two-sided and 80 % power: z(0.975) + z(0.8).
POWER_FACTOR = float(norm.ppf(0.975) + norm.ppf(0.8))
# Share of items on which two arms disagree, where no earlier evaluation tells.
ASSUMED_DISAGREEMENT = 0.15
BETTER, NOT_INFERIOR, INFERIOR = "better", "not_inferior", "inferior"
NOT_ENOUGH_EVIDENCE, INDICATIVE_ONLY = "not_enough_evidence", "indicative_only"


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval at `LEVEL`."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Arm minus reference, with the two-sided p-value of "no difference".

    `seeds_disagree`: the seeds' own spread is wider than the items', so more seeds tell more than more items.
    """

    difference: float
    low: float
    high: float
    p: float
    seeds: int
    items: int
    item_variance: float
    seed_variance: float
    seeds_disagree: bool


@dataclass(frozen=True)
class _Spread:
    """Bootstrap draws around a mean, and the variance that an interval has to allow for.

    The draws give the shape. Their width is corrected to `variance`, the sum of the variance of the mean over
    items and of the mean over seeds: resampling S seeds alone shows only (S - 1)/S of their variance.
    """

    mean: float
    deviations: Scores  # sorted, of the draws from the mean
    variance: float
    freedom: float
    item_variance: float
    seed_variance: float
    floor: float  # half a width that no interval undercuts

    def interval(self, level: float) -> tuple[float, float]:
        """Percentile bootstrap, widened to `variance` and to Student's t with Satterthwaite's freedom."""
        tail = (1 - level) / 2
        spread = float(self.deviations.std())
        if spread == 0.0 or self.variance == 0.0:
            return self.mean - self.floor, self.mean + self.floor
        widen = math.sqrt(self.variance) / spread
        widen *= float(t.ppf(1 - tail, self.freedom) / norm.ppf(1 - tail))
        low, high = np.quantile(self.deviations, [tail, 1 - tail])
        return self.mean + min(-self.floor, widen * float(low)), self.mean + max(
            self.floor, widen * float(high)
        )

    def p(self) -> float:
        """The smallest 1 - level whose interval leaves 0 out, by bisection on the level."""
        least, most = 1 / (len(self.deviations) + 1), 1.0
        if not self._excludes_zero(1 - least):
            for _ in range(30):
                middle = math.sqrt(least * most)
                least, most = (least, middle) if self._excludes_zero(1 - middle) else (middle, most)
            return most
        return least

    def _excludes_zero(self, level: float) -> bool:
        low, high = self.interval(level)
        return low > 0 or high < 0


def compare(
    arm: Scores,
    reference: Scores,
    clusters: Sequence[int] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Paired bootstrap over items (or clusters of items that share a document) and seeds."""
    differences = np.asarray(arm, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    spread = _spread(differences, clusters, draws, seed)
    low, high = spread.interval(LEVEL)
    return Comparison(
        difference=spread.mean,
        low=low,
        high=high,
        p=spread.p(),
        seeds=differences.shape[0],
        items=differences.shape[1],
        item_variance=spread.item_variance,
        seed_variance=spread.seed_variance,
        seeds_disagree=spread.seed_variance > spread.item_variance,
    )


def estimate(
    scores: Scores, clusters: Sequence[int] | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """An arm's own mean and interval; the base model has one row of scores."""
    spread = _spread(np.asarray(scores, dtype=np.float64), clusters, draws, seed)
    return Estimate(spread.mean, *spread.interval(LEVEL))


def kept_gain(
    arm: Scores, reference: Scores, base: Scores, *, draws: int = DRAWS, seed: int = 0
) -> Estimate | None:
    """Share of the reference's gain over the base that the arm keeps, 1.0 = all of it.

    None unless the reference's gain is certainly above 0: a ratio to something near 0 says nothing.
    """
    gained = np.asarray(reference, dtype=np.float64) - base
    if compare(np.asarray(reference), np.broadcast_to(base, gained.shape), draws=draws, seed=seed).low <= 0:
        return None
    won = np.asarray(arm, dtype=np.float64) - base
    few_won, few_gained = _bagged(won), _bagged(gained)
    items, seeds = _weights(few_gained.shape, None, draws, seed)
    ratios = _means(few_won, items, seeds) / _means(few_gained, items, seeds)
    mean = float(won.mean() / gained.mean())
    # Widened like the difference itself, of which the ratio is a rescaling.
    spread = _spread(won - mean * gained, None, draws, seed)
    drawn = float((_means(few_won - mean * few_gained, items, seeds)).std())
    widen = math.sqrt(spread.variance) / drawn if drawn > 0 else 1.0
    widen *= float(t.ppf(0.975, spread.freedom) / norm.ppf(0.975))
    low, high = np.quantile(ratios, [0.025, 0.975]) - mean
    return Estimate(mean, mean + widen * float(low), mean + widen * float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def outcome(comparison: Comparison, p_adjusted: float, margin: float) -> str:
    """What may be said of an arm against the reference, given a margin that was fixed before."""
    if comparison.seeds < MIN_SEEDS:
        return INDICATIVE_ONLY
    if comparison.difference > 0 and p_adjusted < 1 - LEVEL:
        return BETTER
    if comparison.low > -margin:
        return NOT_INFERIOR
    if comparison.high < -margin:
        return INFERIOR
    return NOT_ENOUGH_EVIDENCE


def detectable_difference(items: int, *, variance: float = ASSUMED_DISAGREEMENT, arms: int = 1) -> float:
    """The smallest difference that `items` test rows show with 80 % power (Miller, arXiv 2411.00640).

    `variance` is that of one item's difference; for right-or-wrong scores the share of items on which two
    arms disagree. A lower bound, as seeds add variance. Holm's first step over `arms` raises the quantile.
    """
    factor = float(norm.ppf(1 - (1 - LEVEL) / 2 / arms) + norm.ppf(0.8))
    return factor * math.sqrt(variance / items)


def items_needed(difference: float, *, variance: float = ASSUMED_DISAGREEMENT, arms: int = 1) -> int:
    """How many test rows show `difference` with 80 % power."""
    return math.ceil((detectable_difference(1, variance=variance, arms=arms) / difference) ** 2)


def beats_chance(right: int, questions: int, choices: int) -> bool:
    """Whether guessing among `choices` gives so many right answers in less than 5 % of all tries."""
    return float(binom.sf(right - 1, questions, 1 / choices)) < 1 - LEVEL


def seeds_needed(comparison: Comparison, margin: float, *, most: int = 10) -> int | None:
    """Seeds in all that would probably decide against `margin`; None if not even `most` would.

    Takes the present difference and spreads as the truth. Items stay, so their variance does too.
    """
    distance = abs(comparison.difference + margin)
    for seeds in range(max(MIN_SEEDS, comparison.seeds + 1), most + 1):
        seed_part = comparison.seed_variance * comparison.seeds / seeds
        variance = comparison.item_variance + seed_part
        freedom = _freedom(comparison.item_variance, comparison.items, seed_part, seeds)
        if float(t.ppf(0.975, freedom)) * math.sqrt(variance) < distance:
            return seeds
    return None


# How the draws are made


def _spread(differences: Scores, clusters: Sequence[int] | None, draws: int, seed: int) -> _Spread:
    items = differences.shape[1]
    if clusters is None:
        differences = _bagged(differences)
    count = differences.shape[0]
    item_weights, seed_weights = _weights(differences.shape, clusters, draws, seed)
    mean = float(differences.mean())
    deviations = np.sort(_means(differences, item_weights, seed_weights) - mean)
    whole = np.full((draws, count), 1 / count)
    item_variance = float(_means(differences, item_weights, whole).var())
    seed_variance = float(differences.mean(axis=1).var(ddof=1) / count) if count > 1 else 0.0
    units = len(set(clusters)) if clusters is not None else items
    # Not one item differs: the true share of items that do may still be 3 in n (the rule of three).
    floor = 3 / units if not differences.any() else 0.0
    return _Spread(
        mean=mean,
        deviations=deviations,
        variance=item_variance + seed_variance,
        freedom=_freedom(item_variance, units, seed_variance, count),
        item_variance=item_variance,
        seed_variance=seed_variance,
        floor=floor,
    )


def _bagged(differences: Scores) -> Scores:
    """At most BAGS means of items thrown together by chance: [seeds, bags], with the mean of every seed kept.

    Bags differ by one item in size, which moves only how far they lie from the mean, never the mean.
    """
    items = differences.shape[1]
    if items <= BAGS:
        return differences
    order = np.random.default_rng(0).permutation(items)
    ends = np.linspace(0, items, BAGS + 1).astype(int)
    means = differences.mean(axis=1, keepdims=True)
    sums = np.add.reduceat(differences[:, order] - means, ends[:-1], axis=1)
    bagged: Scores = means + sums * (BAGS / items)
    return bagged


def _freedom(item_variance: float, units: int, seed_variance: float, seeds: int) -> float:
    """Satterthwaite's degrees of freedom of the sum; the seeds' own where they make up most of it."""
    if seeds < 2 or seed_variance == 0.0:
        return max(1, units - 1)
    if seed_variance > 2 * item_variance:
        return seeds - 1
    parts = item_variance**2 / max(1, units - 1) + seed_variance**2 / (seeds - 1)
    return (item_variance + seed_variance) ** 2 / parts


def _weights(
    shape: tuple[int, ...], clusters: Sequence[int] | None, draws: int, seed: int
) -> tuple[Scores, Scores]:
    """How often each item and each seed occurs in each draw, as shares: [draws, items] and [draws, seeds]."""
    seeds, items = shape
    random = np.random.default_rng(seed)
    if clusters is None:
        drawn, random.bit_generator.state = _item_weights(items, draws, seed)
    else:
        members = np.unique(np.asarray(clusters), return_inverse=True)[1]
        units = int(members.max()) + 1
        drawn = random.multinomial(units, np.full(units, 1 / units), size=draws)[:, members].astype(
            np.float64
        )
        drawn /= drawn.sum(axis=1, keepdims=True)
    return drawn, random.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds


# Every arm of a comparison has the same items, so the same draws serve all of them.
@functools.lru_cache(maxsize=1)
def _item_weights(items: int, draws: int, seed: int) -> tuple[Scores, Any]:
    """Shares of the items in each draw: [draws, items], and the random state after them."""
    random = np.random.default_rng(seed)
    drawn = random.multinomial(items, np.full(items, 1 / items), size=draws).astype(np.float64)
    drawn /= items
    drawn.setflags(write=False)
    return drawn, random.bit_generator.state


def _means(differences: Scores, item_weights: Scores, seed_weights: Scores) -> Scores:
    """The weighted mean of every draw: [draws]."""
    means: Scores = np.einsum("bs,bs->b", item_weights @ differences.T, seed_weights)
    return means
