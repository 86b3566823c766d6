"""Agreement between a judge and the votes of users. Knows nothing of rows."""

from __future__ import annotations

from typing import NamedTuple

from scipy.stats import binomtest

# With fewer answers the interval is wider than a quarter of the scale.
ENOUGH = 50
# Below this lower bound the judge is too unreliable to decide anything.
WEAK = 0.7


class Agreement(NamedTuple):
    """The share of `items` answers with the same verdict, and its Wilson 95 % interval."""

    items: int
    share: float
    low: float
    high: float

    @property
    def is_weak(self) -> bool:
        """Return whether the true agreement may lie below `WEAK`."""
        return self.low < WEAK


def agreement(same: int, items: int) -> Agreement | None:
    """Return the agreement where `same` of `items` verdicts are the same; None without any."""
    if not items:
        return None
    interval = binomtest(same, items).proportion_ci(0.95, method="wilson")
    return Agreement(items, same / items, float(interval.low), float(interval.high))
