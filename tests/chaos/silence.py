"""The limit for submits while the broker is silent, for its test and for the storm."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

LIMIT_SECONDS = 0.3


def p95(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]


def find_slow_submits(seconds: Sequence[float]) -> list[str]:
    """Return a violation if the p95 of the submits exceeds the limit."""
    if not seconds or p95(seconds) < LIMIT_SECONDS:
        return []
    return [f"p95 of {len(seconds)} submits is {p95(seconds):.3f} s instead of less than {LIMIT_SECONDS} s"]
