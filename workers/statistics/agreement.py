"""Measure how often a judge and people give the same verdict. Knows nothing of rows."""

from __future__ import annotations

from typing import NamedTuple

from scipy.stats import binomtest

# With fewer answers the interval is wider than a quarter of the scale.
ENOUGH = 50


class Agreement(NamedTuple):
    """The share of `items` answers with the same verdict, and its Wilson 95 % interval."""

    items: int
    share: float
    low: float
    high: float


def agreement(same: int, items: int) -> Agreement | None:
    """Return the agreement where `same` of `items` verdicts are the same; None without any."""
    if not items:
        return None
    interval = binomtest(same, items).proportion_ci(0.95, method="wilson")
    return Agreement(items, same / items, float(interval.low), float(interval.high))
