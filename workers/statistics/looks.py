"""Levels for a study that is looked at several times.

Lan and DeMets (Biometrika 70, 1983): look k may spend as much of the error as makes the errors of looks 1 to
k come to alpha_k = 0.05 - 0.01 / 2^(k - 1): 0.04, 0.045, 0.0475 and so on. It never spends all, so that seeds
can be added beyond the plan. Estimates at looks j < k correlate by sqrt(V_k / V_j), V being their variances;
the probability of a first crossing at look k is integrated step by step (Armitage, McPherson and Rowe, J. R.
Statist. Soc. A 132, 1969).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workers.statistics.distributions import normal_probabilities, normal_quantile

Scores = NDArray[np.float64]

ALPHA = 0.05
FIRST_LOOK, SEEDS_BETWEEN_LOOKS = 3, 2
# Looks that share nearly all of their data: closer to 1 the integral would need a finer grid.
HIGHEST_CORRELATION = 0.99
GRID = 201


def spent_at(look: int) -> float:
    """Return the error that looks 1 to `look` may make together, two-sided."""
    return ALPHA - math.ldexp(0.01, 1 - look)


def look_sizes(seeds: int, ended: Sequence[int] = ()) -> list[int]:
    """Return the number of seeds at each look of a study with that many: 3, 5, 7 ... and all.

    `ended`: the numbers with which it had ended before seeds were added. Too few for a verdict are no look.
    """
    earlier = [size for size in ended if FIRST_LOOK <= size < seeds]
    return sorted({*range(FIRST_LOOK, seeds, SEEDS_BETWEEN_LOOKS), *earlier, seeds})


@functools.lru_cache(maxsize=4096)
def level_at(variances: tuple[float, ...]) -> float:
    """Return the two-sided level of the last look, from the variances of the estimate at all looks so far."""
    bound = -normal_quantile(spent_at(1) / 2)
    grid = np.linspace(-1.0, 1.0, GRID)
    density = _density(grid * bound)
    for look in range(2, len(variances) + 1):
        before, now = variances[look - 2], variances[look - 1]
        correlation = min(HIGHEST_CORRELATION, math.sqrt(now / before)) if before else HIGHEST_CORRELATION
        scale = math.sqrt(1 - correlation**2)
        centers = correlation * grid * bound
        weights = density * _trapezoid(bound)
        spend = spent_at(look) - spent_at(look - 1)
        bound = _bound(centers, weights, scale, spend)
        if look < len(variances):
            density = _density((grid[:, np.newaxis] * bound - centers) / scale) / scale @ weights
    return 2 * float(normal_probabilities(np.array(-bound)))


def _bound(centers: Scores, weights: Scores, scale: float, spend: float) -> float:
    """Return the limit that the estimate crosses for the first time with probability `spend`."""
    # Half a second, which every process would pay at its start.
    from scipy.optimize import brentq

    return float(
        brentq(lambda limit: 2 * weights @ normal_probabilities((centers - limit) / scale) - spend, 0.0, 8.0)
    )


def _density(values: Scores) -> Scores:
    """Return the standard normal density."""
    density: Scores = np.exp(-(values**2) / 2) / math.sqrt(2 * math.pi)
    return density


def _trapezoid(bound: float) -> Scores:
    """Return the weights of the grid points in an integral from -bound to bound."""
    weights = np.full(GRID, 2 * bound / (GRID - 1))
    weights[[0, -1]] /= 2
    return weights
