"""The limit for submits while the broker is silent, for its test and for the storm.

`CHAOS_SILENT_SECONDS` sets the length of the silence in the test's long form, and has the storm check its
submits too.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence

IS_CHECKED = "CHAOS_SILENT_SECONDS" in os.environ
LONG_SECONDS = float(os.environ.get("CHAOS_SILENT_SECONDS", "300"))
LIMIT_SECONDS = 0.3
# For a short silence beside other tests. A submit that waits for the broker takes at least the three seconds
# of a connection attempt.
SHORT_LIMIT_SECONDS = 2.5


def p95(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]


def find_slow_submits(seconds: Sequence[float], limit: float = LIMIT_SECONDS) -> list[str]:
    """Return a violation if the p95 of the submits exceeds the limit."""
    if not seconds or p95(seconds) < limit:
        return []
    return [f"p95 of {len(seconds)} submits is {p95(seconds):.3f} s instead of less than {limit} s"]
