"""The preference between two models from people's blind votes. Knows nothing of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from workers.statistics.agreement import wilson_interval


class Preference(NamedTuple):
    """Prompts on which one model was preferred, and the share of the decided ones with its 95 % interval."""

    wins: int
    losses: int
    equal: int
    low: float
    high: float

    @property
    def decided(self) -> int:
        return self.wins + self.losses

    @property
    def share(self) -> float | None:
        """Return the share of decided prompts on which the first model was preferred; None without any."""
        return self.wins / self.decided if self.decided else None

    @property
    def is_clear(self) -> bool:
        """Return whether the interval excludes that both are preferred equally often."""
        return bool(self.decided) and not self.low <= 0.5 <= self.high


def preference(balances: Sequence[int]) -> Preference:
    """Return the preference from each prompt's votes for the first model minus those for the second."""
    wins, losses = sum(balance > 0 for balance in balances), sum(balance < 0 for balance in balances)
    low, high = wilson_interval(wins, wins + losses) if wins + losses else (0.0, 1.0)
    return Preference(wins, losses, len(balances) - wins - losses, low, high)
