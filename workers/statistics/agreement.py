"""Agreement between a judge and the votes of users. Knows nothing of rows."""

from __future__ import annotations

import math
from typing import NamedTuple

# The 97.5 % quantile of the normal distribution.
NORMAL_975 = 1.959963984540054


class Agreement(NamedTuple):
    """The share of `items` answers with the same verdict, and its Wilson 95 % interval."""

    items: int
    share: float
    low: float
    high: float

    @property
    def is_weak(self) -> bool:
        """Return whether judge and people may disagree on more than 30 % of the answers."""
        return self.low < 0.7


def agreement(same: int, items: int) -> Agreement | None:
    """Return the agreement where `same` of `items` verdicts are the same; None without any."""
    return Agreement(items, same / items, *wilson_interval(same, items)) if items else None


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the Wilson 95 % interval of a share.

    Written out, because importing scipy.stats takes a second and 50 MB. The test compares both.
    """
    share, squared = successes / trials, NORMAL_975**2
    middle = (share + squared / (2 * trials)) / (1 + squared / trials)
    spread = math.sqrt(share * (1 - share) / trials + squared / (4 * trials**2))
    half = NORMAL_975 * spread / (1 + squared / trials)
    return max(0.0, middle - half), min(1.0, middle + half)
