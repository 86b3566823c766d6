"""The earlier method of verdicts, which the proof compares with today's: a paired bootstrap, arm by arm.

Items and seeds of one arm's difference are drawn with replacement. Each arm has the variance of its own seeds
alone, and a study is looked at with every added seed at the same level.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from workers.statistics.looks import look_sizes
from workers.statistics.variance import Scores
from workers.statistics.verdicts import BETTER, DECIDED, INFERIOR, NOT_ENOUGH_EVIDENCE, NOT_INFERIOR, holm

DRAWS = 600
# More items than this are drawn in so many bags.
BAGS = 500


@dataclass(frozen=True)
class Comparison:
    """Arm minus reference: draws around the mean, whose width is corrected to `variance`."""

    mean: float
    deviations: Scores  # [draws], sorted
    variance: float
    freedom: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the percentile interval, widened to `variance` and to Student's t."""
        tail = (1 - level) / 2
        widen = math.sqrt(self.variance) / float(self.deviations.std())
        widen *= float(t.ppf(1 - tail, self.freedom) / norm.ppf(1 - tail))
        low, high = np.quantile(self.deviations, [tail, 1 - tail])
        return self.mean + widen * float(low), self.mean + widen * float(high)

    @property
    def p(self) -> float:
        """Return the smallest 1 - level whose interval excludes 0, by bisection on the level."""
        least, most = 1 / (DRAWS + 1), 1.0
        for _halving in range(12):
            middle = math.sqrt(least * most)
            low, high = self.interval(1 - middle)
            least, most = (least, middle) if low > 0 or high < 0 else (middle, most)
        return most


def compare(arm: Scores, reference: Scores) -> Comparison:
    """Compare scores of shape [seeds, items]."""
    differences = arm - reference
    seeds, items = differences.shape
    units = min(items, BAGS)
    bags = np.random.default_rng(0).permutation(items) * units // items
    sizes = np.bincount(bags, minlength=units).astype(np.float64)
    sums = np.stack([np.bincount(bags, row, units) for row in differences])
    drawn, shares = _draws(units, seeds)
    by_seed = drawn @ sums.T / (drawn @ sizes)[:, np.newaxis]
    mean = float(differences.mean())
    item_variance = float(by_seed.mean(axis=1).var())
    seed_variance = float(differences.mean(axis=1).var(ddof=1)) / seeds
    freedom = float(seeds - 1)
    if seed_variance <= 2 * item_variance:
        parts = item_variance**2 / (units - 1) + seed_variance**2 / (seeds - 1)
        freedom = (item_variance + seed_variance) ** 2 / parts
    deviations = np.sort((by_seed * shares).sum(axis=1) - mean)
    return Comparison(mean, deviations, item_variance + seed_variance, freedom)


@functools.lru_cache(maxsize=32)
def _draws(units: int, seeds: int) -> tuple[Scores, Scores]:
    """Return how often each unit was drawn, and each seed's share: [draws, units], [draws, seeds]."""
    random = np.random.default_rng(1)
    drawn = random.multinomial(units, np.full(units, 1 / units), size=DRAWS).astype(np.float64)
    return drawn, random.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS) / seeds


def decide(scores: Scores, margins: tuple[float, ...]) -> dict[float, list[str]]:
    """Return the outcomes of all arms but the first, for each margin: looked at until decided."""
    outcomes = {margin: [NOT_ENOUGH_EVIDENCE] * (len(scores) - 1) for margin in margins}
    for size in look_sizes(scores.shape[1]):
        compared = [compare(arm[:size], scores[0][:size]) for arm in scores[1:]]
        adjusted = holm([one.p for one in compared])
        for margin, earlier in outcomes.items():
            outcomes[margin] = [
                outcome if outcome in DECIDED else _outcome(one, p, margin)
                for outcome, one, p in zip(earlier, compared, adjusted, strict=True)
            ]
    return outcomes


def _outcome(compared: Comparison, p_adjusted: float, margin: float) -> str:
    if compared.mean > 0 and p_adjusted < 0.05:
        return BETTER
    low, high = compared.interval()
    if low > -margin:
        return NOT_INFERIOR
    return INFERIOR if high < -margin else NOT_ENOUGH_EVIDENCE
