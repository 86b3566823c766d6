"""Ratios of measurements that were taken in turn, with their intervals."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return the ratio of the medians with its 95 % bootstrap interval."""
    generator = random.Random(0)

    def draw(values: Sequence[float]) -> float:
        return statistics.median(generator.choices(values, k=len(values)))

    drawn = sorted(draw(ours) / draw(theirs) for _ in range(2000))
    return statistics.median(ours) / statistics.median(theirs), drawn[49], drawn[1949]
