"""The variance of an arm's mean score: what its test rows add, and what its seeds add.

Let y_asi be the score of arm a trained with seed s on item i; m_as its mean over items; A arms, S seeds,
n items in G groups. A contrast is a weighted sum of arm means, such as arm minus reference.

Seeds. Least squares of m_as on arm + seed leaves residuals r_as with nu degrees of freedom (nu = (A - 1)
(S - 1) if no seed is missing; N - A - S + 1 of N means in general). The pooled variance of one mean over
seeds is s_p^2 = sum r^2 / nu. An arm's own variance solves E[sum_s r_as^2] = sum_b K_ab s_b^2, where K_ab is
the sum of the squared residual projections between the cells of a and b (MINQUE: C. R. Rao, JASA 65, 1970);
with no seed missing that is s_a^2 = (sum_s r_as^2 / (S - 1) - s_p^2 / A) / (1 - 2 / A). An arm beyond the F
distribution's 1 - 0.1 / A point against the others' pool, or against its own f_a below if that is larger, is
"unsteady": it keeps its own variance with S - 1 degrees of freedom; beyond the 1 - 0.01 / A point it also
leaves the pool. Two arms leave no residual of their own (r_1s = -r_2s), so each keeps the variance of its own
means (Welch, Biometrika 34, 1947).

Items. V_items is the variance of the contrast's mean over groups drawn together, in the limit of infinitely
many bootstrap draws: sum_g (sum_{i in g} z_i - z)^2 / n^2 * G / (G - 1), with z_i the contrast of item i
averaged over seeds (ratio estimator: Cochran, Sampling Techniques, 1977, ch. 6). For scores between 0 and 1
2 / G^2 is added: where every item is right, some of the next ones will not be.

Both. Items that one seed gets right and another wrong move m_as as well, and V_items contains them already:
f_a = sum_sg (sum_{i in g} y_asi - y_a.i - m_as + m_a.)^2 / ((S - 1) n^2) * G / (G - 1). So the variance of
arm minus reference is

    V  = V_items + max(0, s_a^2 + s_r^2 - f_a - f_r) / S
    df = V^2 / (V_items^2 / (G - 1) + (2 s_p^2 / S)^2 / nu)

with Satterthwaite's degrees of freedom (Biometrics Bull. 2, 1946), of which no result is below the smallest
part's. An arm with a variance of its own adds (s_a^2 / S)^2 / (S - 1) in place of its share of the pool.

By hand: three arms, two seeds, m = [[0.70, 0.74], [0.60, 0.60], [0.65, 0.67]]. Arm means 0.72, 0.60, 0.66;
seed means 0.65, 0.67; mean 0.66. Residuals of the first arm: 0.70 - 0.72 - 0.65 + 0.66 = -0.01 and +0.01,
of the second +0.01 and -0.01, of the third 0. So s_p^2 = 4 * 0.0001 / 2 = 0.0002, and the first arm's own
variance is (0.0002 / 1 - 0.0002 / 3) / (1 - 2 / 3) = 0.0004.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from workers.statistics.distributions import f_quantile

Scores = NDArray[np.float64]

# Chance that any of the arms passes the limit although all are equally steady.
UNSTEADY, OUTSIDE_POOL = 0.1, 0.01


@dataclass(frozen=True)
class Sample:
    """An arm's scores of shape [seeds, items]; `seeds` names the rows. Raises ValueError if one is NaN."""

    seeds: tuple[int, ...]
    scores: Scores

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or self.scores.shape[0] != len(self.seeds):
            raise ValueError(f"{len(self.seeds)} seeds have scores of shape {self.scores.shape}")
        if not np.isfinite(self.scores).all():
            raise ValueError("a score is not a finite number")

    def of_seeds(self, seeds: Sequence[int]) -> Sample:
        """Return the scores of some of its seeds."""
        places = [self.seeds.index(seed) for seed in seeds]
        return Sample(tuple(seeds), self.scores[places])

    @cached_property
    def means(self) -> Scores:
        """Return the mean of each seed: [seeds]."""
        means: Scores = self.scores.mean(axis=1)
        return means


@dataclass(frozen=True)
class Groups:
    """The group of each item: items of one document are drawn together."""

    place: NDArray[np.intp]  # [items]
    count: int

    @classmethod
    def of(cls, items: int, clusters: Sequence[int] | None) -> Groups:
        """Take each item by itself, or the items with the same number in `clusters` together."""
        place = np.arange(items) if clusters is None else np.unique(clusters, return_inverse=True)[1]
        return cls(place, int(place.max()) + 1)

    def squares(self, residuals: Scores) -> float:
        """Return the sum of squared group sums of residuals [..., items], over n^2, times G / (G - 1)."""
        rows = residuals.reshape(-1, residuals.shape[-1])
        if self.count < len(self.place):
            rows = np.stack([np.bincount(self.place, row, self.count) for row in rows])
        share = self.count / max(1, self.count - 1)
        return float((rows**2).sum()) * share / len(self.place) ** 2


@dataclass(frozen=True)
class SeedVariance:
    """The variance of one seed's mean, with its degrees of freedom. `is_pooled`: estimated over all arms."""

    value: float
    freedom: float
    is_pooled: bool


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of arm means with its variance. `item_variance` + `seed_variance` is the variance.

    `flip_variance`: the part of `item_variance` that items add which flip between seeds; like `seed_variance`
    it falls with the number of seeds.
    """

    mean: float
    item_variance: float
    seed_variance: float
    flip_variance: float
    freedom: float

    @property
    def variance(self) -> float:
        return self.item_variance + self.seed_variance

    @property
    def error(self) -> float:
        """Return the standard error."""
        return math.sqrt(self.variance)


class ScoreModel:
    """The scores of a study's arms on the same items, and the variances they imply."""

    def __init__(
        self,
        arms: Mapping[int, Sample],
        clusters: Sequence[int] | None = None,
        *,
        is_share: bool = True,
    ) -> None:
        """Fit `arms` (position -> scores). `clusters`: each item's group. `is_share`: between 0 and 1."""
        self.arms = dict(arms)
        self.items = next(iter(self.arms.values())).scores.shape[1]
        self.groups = Groups.of(self.items, clusters)
        self.is_share = is_share

    def contrast(
        self, weights: Mapping[int, float], base: Scores | None = None, seeds: Sequence[int] | None = None
    ) -> Contrast:
        """Return the weighted sum of arm means (position -> weight), plus `base` of shape [items] as it is.

        `seeds`: those over which each arm is averaged; without, all of its own.
        """
        samples = {
            position: self.arms[position] if seeds is None else self.arms[position].of_seeds(seeds)
            for position in weights
        }
        single = np.zeros(self.items) if base is None else base
        by_item = sum((weight * samples[one].scores.mean(axis=0) for one, weight in weights.items()), single)
        mean = float(by_item.mean())
        item_variance = self.groups.squares(by_item - mean)
        if self.is_share:
            item_variance += 2 / self.groups.count**2
        parts = []
        for position, weight in weights.items():
            count = len(samples[position].seeds)
            found = self._seed_variance(position, in_contrast=len(weights) > 1)
            if found is not None:
                parts.append((weight**2, count, found, self._flips[position]))
        seed_variance = max(0.0, sum(w * (found.value - flips) / count for w, count, found, flips in parts))
        return Contrast(
            mean=mean,
            item_variance=item_variance,
            seed_variance=seed_variance,
            flip_variance=sum(w * flips / count for w, count, _found, flips in parts),
            freedom=self._freedom(
                item_variance, seed_variance, [(w / count, found) for w, count, found, _flips in parts]
            ),
        )

    @property
    def unsteady(self) -> list[int]:
        """Return the arms whose seeds differ more than those of the others."""
        return [] if self._is_unpaired else sorted(self._own)

    # Seeds

    @cached_property
    def _cells(self) -> list[tuple[int, int, float]]:
        """Return (arm, seed, mean) of every training."""
        return [
            (position, seed, float(mean))
            for position, sample in self.arms.items()
            for seed, mean in zip(sample.seeds, sample.means, strict=True)
        ]

    @cached_property
    def _is_unpaired(self) -> bool:
        """Return whether arms of their own variance are all there is: two arms, or seeds that few share."""
        return len(self.arms) < 3 or _fit(self._cells).freedom < 2

    @cached_property
    def _pool(self) -> tuple[SeedVariance | None, dict[int, SeedVariance]]:
        """Return the pooled variance, and those of the arms that keep their own."""
        several = {one for one, sample in self.arms.items() if len(sample.seeds) > 1}
        if self._is_unpaired:
            return None, {one: self._one_way(one) for one in several}
        fit = _fit(self._cells)
        own, outside = {}, set()
        variances = fit.own_variances(several)
        for position in several:
            others = [one for one in several if one != position]
            weights = [len(self.arms[one].seeds) - 1 for one in others]
            freedom = len(self.arms[position].seeds) - 1
            rest = sum(weights) - max(weights, default=0)
            if rest < 1:
                continue
            pooled = float(np.average([variances[one] for one in others], weights=weights))
            # Items that flip between seeds move any mean by so much, and are no sign of an unsteady arm.
            pooled = max(self._flips[position], pooled)
            value = variances[position]
            if value > pooled * f_quantile(freedom, rest, 1 - UNSTEADY / len(several)):
                own[position] = SeedVariance(value, freedom, is_pooled=False)
            if value > pooled * f_quantile(freedom, rest, 1 - OUTSIDE_POOL / len(several)):
                outside.add(position)
        inside = _fit([cell for cell in self._cells if cell[0] not in outside])
        fit = inside if inside.freedom >= 2 else fit
        return SeedVariance(fit.variance, fit.freedom, is_pooled=True), own

    @property
    def _own(self) -> dict[int, SeedVariance]:
        return self._pool[1]

    def _one_way(self, position: int) -> SeedVariance:
        """Return the variance of an arm's own means."""
        sample = self.arms[position]
        return SeedVariance(float(sample.means.var(ddof=1)), len(sample.seeds) - 1, is_pooled=False)

    def _seed_variance(self, position: int, *, in_contrast: bool) -> SeedVariance | None:
        """Return the variance of one mean of an arm; None if one seed is all there is to tell."""
        pooled, own = self._pool
        if position in own:
            return own[position] if in_contrast else self._one_way(position)
        if pooled is None or in_contrast:
            return pooled
        return self._with_common_part(pooled)

    def _with_common_part(self, pooled: SeedVariance) -> SeedVariance:
        """Return the pooled variance of a mean by itself: what a seed does to all arms does not cancel."""
        steady = [
            sample for one, sample in self.arms.items() if one not in self._own and len(sample.seeds) > 1
        ]
        if not steady:
            return pooled
        parts = [(float(sample.means.var(ddof=1)), len(sample.seeds) - 1) for sample in steady]
        one_way = float(
            np.average([value for value, _free in parts], weights=[free for _value, free in parts])
        )
        count, seeds = len(steady), max(free for _value, free in parts)
        residual = (count - 1) / count * pooled.value
        common = max(0.0, one_way - residual)
        value = residual + common
        spread = residual**2 / pooled.freedom + common**2 / seeds
        return SeedVariance(value, max(seeds, value**2 / spread) if spread else seeds, is_pooled=True)

    # Items

    @cached_property
    def _flips(self) -> dict[int, float]:
        """Return the variance of one seed's mean that comes from items which flip between seeds."""
        flips = {}
        for position, sample in self.arms.items():
            seeds = len(sample.seeds)
            rest = sample.scores - sample.scores.mean(axis=0)
            rest = rest - rest.mean(axis=1, keepdims=True)
            flips[position] = self.groups.squares(rest) / (seeds - 1) if seeds > 1 else 0.0
        return flips

    def _freedom(
        self, item_variance: float, seed_variance: float, parts: Sequence[tuple[float, SeedVariance]]
    ) -> float:
        """Return Satterthwaite's degrees of freedom; `parts` are the shares of each arm's seed variance."""
        items_free = max(1, self.groups.count - 1)
        pooled = [(share, found) for share, found in parts if found.is_pooled]
        terms = [(share * found.value, found.freedom) for share, found in parts if not found.is_pooled]
        if pooled:
            terms.append((sum(share * found.value for share, found in pooled), pooled[0][1].freedom))
        least = min([items_free, *(freedom for _value, freedom in terms)])
        spread = item_variance**2 / items_free + sum(value**2 / freedom for value, freedom in terms)
        if spread == 0.0:
            return least
        return max(least, (item_variance + seed_variance) ** 2 / spread)


@dataclass(frozen=True)
class _Fit:
    """Least squares of cell means on arm + seed."""

    residuals: Scores  # [cells]
    projection: Scores  # [cells, cells], from means to residuals
    arms: NDArray[np.intp]  # [cells], positions
    freedom: int

    @property
    def variance(self) -> float:
        return float((self.residuals**2).sum()) / self.freedom if self.freedom else 0.0

    def own_variances(self, arms: set[int]) -> dict[int, float]:
        """Solve for the variance of each arm by itself; not below 0."""
        order = sorted(arms)
        members = np.array([self.arms == one for one in order], dtype=np.float64)
        shares = members @ self.projection**2 @ members.T
        squares = members @ self.residuals**2
        solved = np.linalg.lstsq(shares, squares, rcond=None)[0]
        return dict(zip(order, np.maximum(solved, 0.0).tolist(), strict=True))


def _fit(cells: Sequence[tuple[int, int, float]]) -> _Fit:
    arms = np.array([arm for arm, _seed, _mean in cells])
    seeds = np.array([seed for _arm, seed, _mean in cells])
    design = np.hstack(
        [arms[:, np.newaxis] == np.unique(arms), seeds[:, np.newaxis] == np.unique(seeds)]
    ).astype(np.float64)
    hat = design @ np.linalg.pinv(design)
    projection = np.eye(len(cells)) - hat
    residuals = projection @ np.array([mean for _arm, _seed, mean in cells])
    return _Fit(
        # Rounding errors of equal means would differ from arm to arm.
        residuals=np.round(residuals, 12),
        projection=projection,
        arms=arms,
        freedom=round(float(np.trace(projection))),
    )
