"""The share of same verdicts and its Wilson interval."""

from __future__ import annotations

import pytest
import scipy

from workers.statistics.agreement import agreement, wilson_interval


def test_wilson_interval_of_the_textbook() -> None:
    # (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n) for p = 0.9, n = 50, z = 1.96.
    assert agreement(45, 50) == (50, 0.9, pytest.approx(0.786, abs=1e-3), pytest.approx(0.957, abs=1e-3))


def test_interval_of_few_answers_is_wide() -> None:
    assert agreement(10, 10).low == pytest.approx(0.722, abs=1e-3)  # type: ignore[union-attr]


def test_no_answers_have_no_agreement() -> None:
    assert agreement(0, 0) is None


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (3, 7), (0, 40), (40, 40), (499, 1000)])
def test_interval_equals_that_of_scipy(successes: int, trials: int) -> None:
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)
