"""How long a person may wait for an answer while the broker is silent, for the test of it and for the storm.

`CHAOS_SILENT_SECONDS` sets for how long it is silent in the test, and has the storm judge its submits too.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence

IS_JUDGED = "CHAOS_SILENT_SECONDS" in os.environ
SECONDS = float(os.environ.get("CHAOS_SILENT_SECONDS", "10"))
# The goal is for the long form; the short one beside other tests only sees that nobody waits for an answer,
# since the shortest time that anything waits for a broker is that of connecting to it, three seconds.
MOST_SECONDS = 0.3 if SECONDS >= 300 else 2.5


def p95(took: Sequence[float]) -> float:
    """What only one in twenty exceeds."""
    return statistics.quantiles(took, n=20, method="inclusive")[-1] if len(took) > 1 else took[0]


def held_up(took: Sequence[float], most: float = MOST_SECONDS) -> list[str]:
    """What is wrong with the times that submits took beside a silent broker; nothing without one."""
    if not took or p95(took) < most:
        return []
    return [f"p95 of {len(took)} submits is {p95(took):.3f} s, right is less than {most} s"]
