"""The power of a study: what its plan can show, and whether further seeds would decide an open arm.

A plan's difference between two arms has the variance V = v / n + 2 sigma^2 / S: v is the variance of one
item's difference, n the number of items (or groups), sigma the standard deviation of an arm's mean over
seeds. With Satterthwaite's degrees of freedom it shows a difference X with 80 % probability if

    X = (t_{1 - alpha / 2m, df} + t_{0.8, df}) * sqrt(V)

for m comparisons after Holm (Miller, arXiv 2411.00640, with the seeds' part added). Two equal arms are found
"as good" within a margin with probability T_df(margin / sqrt(V) - q), q being the larger of the interval's
quantile and that of Holm's first step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from workers.statistics.distributions import t_probability, t_quantile
from workers.statistics.looks import level_at, look_sizes, spent_at
from workers.statistics.verdicts import MIN_GROUPS, MIN_ITEMS, MIN_SEEDS, Difference

POWER = 0.8
# Share of items on which two arms disagree, and an arm's spread over seeds, unless earlier studies tell.
ASSUMED_DISAGREEMENT, ASSUMED_SEED_SPREAD = 0.15, 0.015
MOST_SEEDS, MOST_ITEMS = 20, 1_000_000


@dataclass(frozen=True)
class Design:
    """A study's plan: `item_variance` of one item's difference, `seed_spread` of one arm's mean.

    `groups` counts for the spread of items: rows of one group may say the same thing.
    """

    arms: int
    seeds: int
    items: int
    groups: int
    item_variance: float = ASSUMED_DISAGREEMENT
    seed_spread: float = ASSUMED_SEED_SPREAD
    is_share: bool = True

    @property
    def is_indicative(self) -> bool:
        """Return whether it can show numbers only, without a verdict."""
        return self.seeds < MIN_SEEDS or self.items < MIN_ITEMS or self.groups < MIN_GROUPS

    @property
    def items_part(self) -> float:
        """Return the part of a difference's variance that more rows reduce."""
        floor = 2 / self.groups**2 if self.is_share else 0.0
        return self.item_variance / self.groups + floor

    @property
    def seeds_part(self) -> float:
        """Return the part of a difference's variance that more seeds reduce."""
        return 2 * self.seed_spread**2 / self.seeds

    @property
    def seeds_are_bottleneck(self) -> bool:
        return self.seeds_part > self.items_part

    @property
    def detectable_difference(self) -> float:
        """Return the smallest difference that it shows with 80 % probability; infinite without a verdict."""
        if self.is_indicative:
            return math.inf
        factor = t_quantile(self._freedom, 1 - self._alpha / 2 / (self.arms - 1)) + t_quantile(
            self._freedom, POWER
        )
        return float(factor) * math.sqrt(self.items_part + self.seeds_part)

    def chance_if_equal(self, margin: float) -> float:
        """Return the probability that an arm equal to the reference is found as good within the margin."""
        if self.is_indicative:
            return 0.0
        alpha = spent_at(len(look_sizes(self.seeds)))
        quantile = _quantile_of_good(alpha, self.arms - 1, self._freedom)
        return t_probability(self._freedom, margin / math.sqrt(self.items_part + self.seeds_part) - quantile)

    def items_for(self, margin: float, most: int = MOST_ITEMS) -> int | None:
        """Return the items that would make a difference of the margin detectable; None if `most` are too few.

        Groups grow in proportion.
        """
        if margin <= 0 or self.is_indicative:
            return None

        def is_enough(items: int) -> bool:
            groups = max(1, round(items * self.groups / self.items))
            return replace(self, items=items, groups=groups).detectable_difference <= margin

        low, high = MIN_ITEMS, most
        if not is_enough(high):
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
        return high

    @property
    def _alpha(self) -> float:
        """Return the level of the last look."""
        seeds_part = self.seeds_part * self.seeds
        return level_at(tuple(self.items_part + seeds_part / size for size in look_sizes(self.seeds)))

    @property
    def _freedom(self) -> float:
        """Return Satterthwaite's degrees of freedom; two arms are not paired by seed.

        Items that flip between seeds, taken as half of the items' part, blur the seeds' variance.
        """
        seeds_free = max(2, self.arms - 1) * (self.seeds - 1)
        blurred = self.seeds_part + self.items_part / 2
        spread = self.items_part**2 / (self.groups - 1) + blurred**2 / seeds_free
        return (self.items_part + self.seeds_part) ** 2 / spread if spread else float(seeds_free)


def _quantile_of_good(alpha: float, comparisons: int, freedom: float) -> float:
    return t_quantile(freedom, 1 - min(alpha / 2, alpha / comparisons))


def chance_to_decide(difference: Difference, margin: float | None, further_seeds: int) -> float:
    """Return the predictive probability that so many further seeds decide an open arm.

    Items stay, so the later estimate D differs from today's d by the new seeds alone: D - d has the variance
    s^2 * k / (S * (S + k)), s^2 being the variance of one seed's difference. Holm's factor is left out,
    because it falls as arms are decided.
    """
    seeds = len(difference.seeds)
    later = seeds + further_seeds
    now = difference.contrast
    # Flips that cancel out over few seeds are estimated as more than all that items add.
    of_seeds = now.seed_variance + min(now.flip_variance, now.item_variance)
    variance = now.variance - of_seeds * further_seeds / later
    scatter = math.sqrt(of_seeds * further_seeds / later)
    if scatter == 0.0 or later < MIN_SEEDS:
        return 0.0
    alpha = level_at((*difference.variances, variance))
    error, freedom = math.sqrt(variance), now.freedom

    def chance_above(limit: float) -> float:
        return t_probability(freedom, (now.mean - limit) / scatter)

    reach = t_quantile(freedom, 1 - alpha / 2) * error
    # Without a margin the outcome is better or worse; as good includes better.
    bound = -(margin or 0.0)
    return chance_above(bound + reach) + 1 - chance_above(bound - reach)


def seeds_to_decide(difference: Difference, margin: float | None, most: int = MOST_SEEDS) -> int | None:
    """Return the fewest further seeds that decide an open arm with 80 % probability; None if none do."""
    seeds = len(difference.seeds)
    for size in look_sizes(most):
        if size > seeds and chance_to_decide(difference, margin, size - seeds) >= POWER:
            return size - seeds
    return None
