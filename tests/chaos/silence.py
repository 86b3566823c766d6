"""How long a request may take while the broker is silent, for its test and for the storm.

`CHAOS_SILENT_SECONDS` sets the length of the test's silence; with it, the storm checks its submits too.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence

IS_CHECKED = "CHAOS_SILENT_SECONDS" in os.environ
SECONDS = float(os.environ.get("CHAOS_SILENT_SECONDS", "5"))
# The goal holds for the long form. The short one only shows that no request waits for the broker: connecting
# to it would take at least three seconds.
LIMIT_SECONDS = 0.3 if SECONDS >= 300 else 2.5


def p95(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]


def find_slow_submits(seconds: Sequence[float], limit: float = LIMIT_SECONDS) -> list[str]:
    """Return a violation if the p95 of the submits exceeds the limit."""
    if not seconds or p95(seconds) < limit:
        return []
    return [f"p95 of {len(seconds)} submits is {p95(seconds):.3f} s instead of less than {limit} s"]
