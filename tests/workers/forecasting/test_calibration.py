"""Correction of estimates by the median of measured / estimated."""

from __future__ import annotations

import pytest

from workers.forecasting.calibration import TIME, correct, error_quantile


def test_estimate_without_runs_is_rough() -> None:
    correction = correct([])
    assert (correction.factor, correction.is_rough) == (1.0, True)
    assert correction.interval(60, TIME) == {"expected": 60, "low": 60 / TIME.rough, "high": 60 * TIME.rough}


def test_one_run_corrects_and_narrows_the_interval() -> None:
    correction = correct([2.0])
    assert correction.interval(60, TIME) == {
        "expected": 120,
        "low": 120 / TIME.measured,
        "high": 120 * TIME.measured,
    }


def test_outlier_does_not_move_the_median() -> None:
    assert correct([2.0, 2.0, 2.0, 2.0, 40.0]).factor == 2.0


def test_other_base_models_correct_but_stay_rough() -> None:
    correction = correct([], [2.0, 3.0, 4.0])
    assert (correction.factor, correction.is_rough) == (3.0, True)
    assert correct([1.5], [1.5, 3.0, 4.0]).factor == 1.5


def test_error_quantile() -> None:
    assert error_quantile([1.05, 0.9, 1.02]) == pytest.approx(0.1)
    assert error_quantile([1.0] * 19 + [5.0]) == 0.0
    assert error_quantile([]) is None
