"""Correct estimates by what finished runs measured: one factor per device and base model.

Standard library only.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """Factor between the expected value and either end of its range."""

    rough: float  # before the first measured run
    measured: float


MEMORY = Tolerance(rough=1.6, measured=1.15)
TIME = Tolerance(rough=3.5, measured=1.25)


@dataclass(frozen=True)
class Correction:
    """Factor from an estimate to the expected value; rough if no run of this base model was measured."""

    factor: float = 1.0
    is_rough: bool = True

    def interval(self, estimate: float, tolerance: Tolerance, fixed: float = 0.0) -> dict[str, float]:
        """Return the corrected estimate plus an uncorrected part as `low`, `expected` and `high`."""
        expected = estimate * self.factor + fixed
        reach = tolerance.rough if self.is_rough else tolerance.measured
        return {"expected": expected, "low": expected / reach, "high": expected * reach}


def correct(same_model: Sequence[float], same_device: Sequence[float] = ()) -> Correction:
    """Return the median of measured / estimated over runs of one base model on one device.

    Without such runs the median of the device's other base models is used, and the result stays rough.
    """
    ratios = same_model or same_device
    return Correction(statistics.median(ratios) if ratios else 1.0, is_rough=not same_model)


def error_quantile(ratios: Sequence[float], share: float = 0.9) -> float | None:
    """Return the relative error that `share` of the measured / expected ratios do not exceed."""
    errors = sorted(abs(ratio - 1) for ratio in ratios)
    return errors[max(0, math.ceil(share * len(errors)) - 1)] if errors else None
