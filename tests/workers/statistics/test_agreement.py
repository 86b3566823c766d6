"""The share of same verdicts and its Wilson interval."""

from __future__ import annotations

import pytest

from workers.statistics.agreement import agreement


def test_wilson_interval_of_the_textbook() -> None:
    # (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n) for p = 0.9, n = 50, z = 1.96.
    assert agreement(45, 50) == (50, 0.9, pytest.approx(0.786, abs=1e-3), pytest.approx(0.957, abs=1e-3))


def test_interval_of_few_answers_is_wide() -> None:
    assert agreement(10, 10).low == pytest.approx(0.722, abs=1e-3)  # type: ignore[union-attr]


def test_no_answers_have_no_agreement() -> None:
    assert agreement(0, 0) is None
