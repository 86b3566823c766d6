"""Agreement between a judge and the votes of users. Knows nothing of rows."""

from __future__ import annotations

from typing import NamedTuple


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
    if not items:
        return None
    # A second and 50 MB, which every process would pay at its start.
    from scipy.stats import binomtest

    interval = binomtest(same, items).proportion_ci(0.95, method="wilson")
    return Agreement(items, same / items, float(interval.low), float(interval.high))
