"""How far two raters agree beyond chance: share, Cohen's kappa and its interval. Knows not who they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
LEVEL = 0.95
# An interval that reaches below this is hardly better than chance.
LEAST_KAPPA = 0.4
# With fewer answers that both have rated, kappa's interval is wider than half of its range.
ENOUGH = 50


@dataclass(frozen=True)
class Agreement:
    """What two raters said of the same `items`. `kappa` is None where both always said the same one thing."""

    items: int
    share: float
    kappa: float | None
    low: float
    high: float

    @property
    def is_enough(self) -> bool:
        """Whether there are answers enough to judge the judge."""
        return self.items >= ENOUGH

    @property
    def is_weak(self) -> bool:
        """Whether the two may agree hardly more than chance would."""
        return self.low < LEAST_KAPPA


def agreement(pairs: Sequence[tuple[bool, bool]]) -> Agreement | None:
    """Of (one's verdict, the other's); None without any.

    The interval is that of kappa under Dirichlet draws of the four shares with half a count added to each
    (Jeffreys' prior): unlike a bootstrap it does not claim certainty where all of few answers agree.
    """
    if not pairs:
        return None
    counts = np.zeros((2, 2))
    for one, other in pairs:
        counts[int(one), int(other)] += 1
    drawn = np.random.default_rng(0).dirichlet(counts.ravel() + 0.5, size=DRAWS).reshape(-1, 2, 2)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(kappa_of(drawn), [tail, 1 - tail])
    shares = counts / len(pairs)
    by_chance = float(_by_chance(shares[None])[0])
    kappa = float(kappa_of(shares[None])[0]) if by_chance < 1 else None
    return Agreement(len(pairs), float(np.trace(shares)), kappa, float(low), float(high))


def kappa_of(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cohen's kappa of tables of shares, [tables, 2, 2]."""
    seen = np.trace(shares, axis1=1, axis2=2)
    chance = _by_chance(shares)
    found: NDArray[np.float64] = (seen - chance) / (1 - chance)
    return found


def _by_chance(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (shares.sum(axis=2) * shares.sum(axis=1)).sum(axis=1)
    return found
