"""The preference between two models from the votes per prompt."""

from __future__ import annotations

from workers.statistics.preference import preference


def test_equal_prompts_are_not_decided() -> None:
    found = preference([2, 1, -1, 0])
    assert (found.wins, found.losses, found.equal, found.share) == (2, 1, 1, 2 / 3)


def test_few_prompts_are_not_clear() -> None:
    assert not preference([1, 1, 1]).is_clear
    assert preference([1] * 10).is_clear
    assert preference([-1] * 10).is_clear


def test_without_a_decision_the_share_is_unknown() -> None:
    found = preference([0, 0])
    assert found.share is None
    assert (found.low, found.high) == (0.0, 1.0)
