"""What runs that have ended teach forecasts: by which factor a sum is off on a device, a model and a setting.

Medians of logarithms, so that one odd run moves nothing; each level is shrunk towards the one above it, and
the first towards the plain formula, by how little it has seen. Standard library only; knows no rows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Within how many standard deviations nine of ten forecasts should lie.
RANGE = 1.65
# A device with fewer runs than this has taught too little: its forecasts are called rough.
ENOUGH = 2


@dataclass(frozen=True)
class Prior:
    """Spread, as logarithms, of devices around the formula, of models and settings around theirs, of runs."""

    device: float
    model: float
    setting: float
    noise: float


MEMORY = Prior(device=0.25, model=0.1, setting=0.05, noise=0.05)
TIME = Prior(device=0.7, model=0.25, setting=0.15, noise=0.12)
START = Prior(device=0.7, model=0.3, setting=0.0, noise=0.3)


@dataclass(frozen=True)
class Observation:
    """One run that has ended: where, on what, with which setting, and measured / reckoned."""

    device: str
    model: str
    setting: str
    ratio: float


@dataclass(frozen=True)
class Correction:
    """`factor` corrects a sum; `spread` is the standard deviation of its logarithm, `runs` of this device."""

    factor: float
    spread: float
    runs: int

    @property
    def is_rough(self) -> bool:
        """Whether this device has hardly taught anything."""
        return self.runs < ENOUGH

    def span(self, value: float) -> dict[str, float]:
        """The corrected sum with its range."""
        expected, reach = value * self.factor, math.exp(RANGE * self.spread)
        return {"expected": expected, "low": expected / reach, "high": expected * reach}


def correction(
    seen: Sequence[Observation], device: str, model: str, setting: str, prior: Prior
) -> Correction:
    """What the runs seen so far say about one more run."""
    here = [one for one in seen if one.device == device and one.ratio > 0]
    alike = [one for one in here if one.model == model]
    same = [one for one in alike if one.setting == setting]
    noise = _noise(same if len(same) >= ENOUGH else alike, prior.noise)
    factor, variance = 0.0, noise**2
    for runs, spread in ((here, prior.device), (alike, prior.model), (same, prior.setting)):
        trust = len(runs) * spread**2 / (len(runs) * spread**2 + noise**2)
        if runs:
            factor += trust * statistics.median([math.log(one.ratio) - factor for one in runs])
        variance += spread**2 * (1 - trust)
    return Correction(math.exp(factor), math.sqrt(variance), len(here))


def _noise(runs: Sequence[Observation], usual: float) -> float:
    """Scatter of like runs: the usual one until there are some, never below half of it."""
    if len(runs) < 2:
        return usual
    logs = [math.log(one.ratio) for one in runs]
    middle = statistics.median(logs)
    # 1.48 times the median deviation is a normal distribution's standard deviation.
    found = 1.48 * statistics.median([abs(value - middle) for value in logs])
    trust = len(runs) / (len(runs) + 4)
    return max(usual / 2, trust * found + (1 - trust) * usual)


def within(ratios: Sequence[float]) -> float | None:
    """The error that nine of ten forecasts did not exceed, as a share; None without any."""
    errors = sorted(abs(ratio - 1) for ratio in ratios)
    if not errors:
        return None
    return errors[min(len(errors) - 1, math.ceil(0.9 * len(errors)) - 1)]
