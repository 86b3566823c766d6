"""Statistics of a study: per-item scores of several arms become differences, intervals and outcomes.

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
# With fewer seeds their spread is a guess, so numbers are shown without a verdict.
MIN_SEEDS = 3
# Share of items on which two arms disagree, if no earlier evaluation has measured it.
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

    `groups`: what was drawn, fewer than the items where some share a document. `seeds_disagree`: the seeds'
    own spread is wider than the items', so more seeds help more than more items.
    """

    difference: float
    low: float
    high: float
    p: float
    seeds: int
    items: int
    groups: int
    item_variance: float
    seed_variance: float
    seeds_disagree: bool


@dataclass(frozen=True)
class _Units:
    """The units of a draw: an item, the items of a document, or a bag of either."""

    place: NDArray[np.intp]  # of each item: its unit
    sizes: Scores  # items of each unit
    groups: int  # before they came into bags

    @classmethod
    def of(cls, items: int, clusters: Sequence[int] | None) -> _Units:
        """Take each item by itself, or the items with the same number in `clusters` together."""
        place = np.arange(items) if clusters is None else np.unique(clusters, return_inverse=True)[1]
        groups = int(place.max()) + 1
        if groups > BAGS:
            bags = np.empty(groups, dtype=np.intp)
            bags[np.random.default_rng(0).permutation(groups)] = np.arange(groups) * BAGS // groups
            place = bags[place]
        return cls(place, np.bincount(place).astype(np.float64), groups)

    def means(self, scores: Scores, drawn: Scores, seed_weights: Scores) -> Scores:
        """Return the mean of every draw: [draws]. `drawn` [draws, units]: how often each unit was drawn."""
        level = scores.mean(axis=1)
        sums = np.stack(
            [np.bincount(self.place, row, len(self.sizes)) for row in scores - level[:, np.newaxis]]
        )
        by_seed = level + drawn @ sums.T / (drawn @ self.sizes)[:, np.newaxis]
        means: Scores = np.einsum("bs,bs->b", by_seed, seed_weights)
        return means


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
    groups: int
    floor: float  # half a width that no interval undercuts

    def interval(self, level: float) -> tuple[float, float]:
        """Return the percentile bootstrap interval, widened to `variance` and to Student's t."""
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
        """Return the smallest 1 - level whose interval excludes 0, by bisection on the level."""
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
    """Compare by paired bootstrap over items (or clusters of items that share a document) and seeds."""
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
        groups=spread.groups,
        item_variance=spread.item_variance,
        seed_variance=spread.seed_variance,
        seeds_disagree=spread.seed_variance > spread.item_variance,
    )


def estimate(
    scores: Scores, clusters: Sequence[int] | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Return an arm's own mean and interval; the base model has one row of scores."""
    spread = _spread(np.asarray(scores, dtype=np.float64), clusters, draws, seed)
    return Estimate(spread.mean, *spread.interval(LEVEL))


def kept_gain(
    arm: Scores,
    reference: Scores,
    base: Scores,
    clusters: Sequence[int] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate | None:
    """Return the share of the reference's gain over the base model that the arm keeps; 1.0 is all of it.

    None unless the reference's gain is certainly above 0: a ratio to something near 0 says nothing.
    """
    gained = np.asarray(reference, dtype=np.float64) - base
    if _spread(gained, clusters, draws, seed).interval(LEVEL)[0] <= 0:
        return None
    won = np.asarray(arm, dtype=np.float64) - base
    units = _Units.of(won.shape[1], clusters)
    weights = _weights(len(units.sizes), won.shape[0], draws, seed)
    ratios = units.means(won, *weights) / units.means(gained, *weights)
    mean = float(won.mean() / gained.mean())
    # Widened like the difference itself, of which the ratio is a rescaling.
    spread = _spread(won - mean * gained, clusters, draws, seed)
    drawn = float(spread.deviations.std())
    widen = math.sqrt(spread.variance) / drawn if drawn > 0 else 1.0
    widen *= float(t.ppf(0.975, spread.freedom) / norm.ppf(0.975))
    low, high = np.quantile(ratios, [0.025, 0.975]) - mean
    return Estimate(mean, mean + widen * float(low), mean + widen * float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method (Scand. J. Statistics 6, 1979); keep their order."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def outcome(comparison: Comparison, p_adjusted: float, margin: float) -> str:
    """Return the outcome of an arm against the reference, for a margin fixed before the start."""
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
    """Return the smallest difference that `items` test rows show with 80 % power (Miller, arXiv 2411.00640).

    `variance` is that of one item's difference; for right-or-wrong scores the share of items on which two
    arms disagree. A lower bound, as seeds add variance. Holm's first step over `arms` raises the quantile.
    """
    factor = float(norm.ppf(1 - (1 - LEVEL) / 2 / arms) + norm.ppf(0.8))
    return factor * math.sqrt(variance / items)


def items_needed(difference: float, *, variance: float = ASSUMED_DISAGREEMENT, arms: int = 1) -> int:
    """Return the number of test rows that show `difference` with 80 % power."""
    return math.ceil((detectable_difference(1, variance=variance, arms=arms) / difference) ** 2)


def beats_chance(right: int, questions: int, choices: int) -> bool:
    """Return whether guessing among `choices` is that often right with a probability below 5 % (binomial)."""
    return float(binom.sf(right - 1, questions, 1 / choices)) < 1 - LEVEL


def seeds_needed(comparison: Comparison, margin: float, *, most: int = 10) -> int | None:
    """Return the total seeds that would probably decide against `margin`; None if not even `most` would.

    Takes the present difference and spreads as the truth. Items stay, so their variance does too.
    """
    distance = abs(comparison.difference + margin)
    for seeds in range(max(MIN_SEEDS, comparison.seeds + 1), most + 1):
        seed_part = comparison.seed_variance * comparison.seeds / seeds
        variance = comparison.item_variance + seed_part
        freedom = _freedom(comparison.item_variance, comparison.groups, seed_part, seeds)
        if float(t.ppf(0.975, freedom)) * math.sqrt(variance) < distance:
            return seeds
    return None


# How the draws are made


def _spread(differences: Scores, clusters: Sequence[int] | None, draws: int, seed: int) -> _Spread:
    count, items = differences.shape
    units = _Units.of(items, clusters)
    drawn, seed_weights = _weights(len(units.sizes), count, draws, seed)
    mean = float(differences.mean())
    deviations = np.sort(units.means(differences, drawn, seed_weights) - mean)
    whole = np.full((draws, count), 1 / count)
    item_variance = float(units.means(differences, drawn, whole).var())
    seed_variance = float(differences.mean(axis=1).var(ddof=1) / count) if count > 1 else 0.0
    # If no item differs, the true share of differing items may still be 3 in n (the rule of three).
    floor = 3 / units.groups if not differences.any() else 0.0
    return _Spread(
        mean=mean,
        deviations=deviations,
        variance=item_variance + seed_variance,
        freedom=_freedom(item_variance, units.groups, seed_variance, count),
        item_variance=item_variance,
        seed_variance=seed_variance,
        groups=units.groups,
        floor=floor,
    )


def _freedom(item_variance: float, units: int, seed_variance: float, seeds: int) -> float:
    """Return Satterthwaite's degrees of freedom (Biometrics Bull. 2, 1946); the seeds' if they dominate."""
    if seeds < 2 or seed_variance == 0.0:
        return max(1, units - 1)
    if seed_variance > 2 * item_variance:
        return seeds - 1
    parts = item_variance**2 / max(1, units - 1) + seed_variance**2 / (seeds - 1)
    return (item_variance + seed_variance) ** 2 / parts


def _weights(units: int, seeds: int, draws: int, seed: int) -> tuple[Scores, Scores]:
    """Return the draws' unit counts [draws, units] and seed shares [draws, seeds]."""
    random = np.random.default_rng(seed)
    drawn, random.bit_generator.state = _drawn_units(units, draws, seed)
    return drawn, random.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds


# Every arm of a comparison has the same items, so the same draws serve all of them.
@functools.lru_cache(maxsize=1)
def _drawn_units(units: int, draws: int, seed: int) -> tuple[Scores, Any]:
    """Return the draws' unit counts [draws, units], and the random state after them."""
    random = np.random.default_rng(seed)
    drawn = random.multinomial(units, np.full(units, 1 / units), size=draws).astype(np.float64)
    drawn.setflags(write=False)
    return drawn, random.bit_generator.state
