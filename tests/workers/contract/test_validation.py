"""Validation reads at most a tenth of the rows that are trained on, and enough of them to mean something."""

from __future__ import annotations

import pytest

from workers.contract.validation import FEWEST_ROWS, MOST_ROWS, MOST_VALIDATIONS, plan_validation


@pytest.mark.parametrize("trained_rows", [160, 480, 800, 2000, 10_000, 1_000_000])
@pytest.mark.parametrize("available", [3, 40, 5000])
def test_validation_reads_at_most_a_tenth_of_the_trained_rows(trained_rows: int, available: int) -> None:
    plan = plan_validation(100, trained_rows, available)
    assert plan.rows * len(plan.steps) <= trained_rows / 10
    assert plan.rows <= available


def test_three_points_and_the_end_come_before_more_rows() -> None:
    assert plan_validation(99, 800, 5000).rows == 20
    assert plan_validation(99, 800, 5000).steps == (0, 33, 66, 99)
    assert plan_validation(99, 1200, 5000).rows == 30
    assert plan_validation(99, 1200, 5000).steps == (0, 33, 66, 99)


def test_the_fewest_rows_come_before_a_third_point() -> None:
    assert plan_validation(100, 480, 5000).rows == FEWEST_ROWS
    assert plan_validation(100, 480, 5000).steps == (0, 50, 100)


def test_the_most_rows_come_before_further_points() -> None:
    assert plan_validation(100, 3200, 5000).rows == MOST_ROWS
    assert plan_validation(100, 3200, 5000).steps == (0, 25, 50, 75, 100)
    assert len(plan_validation(1000, 10**6, 5000).steps) == MOST_VALIDATIONS


def test_a_short_run_is_validated_at_its_end_on_the_fewest_rows() -> None:
    assert plan_validation(12, 24, 5000).steps == (12,)
    assert plan_validation(12, 24, 5000).rows == FEWEST_ROWS


@pytest.mark.parametrize("row_cost", [0.5, 2.0, 7.0])
def test_longer_rows_leave_room_for_fewer(row_cost: float) -> None:
    plan, usual = (plan_validation(100, 5000, 5000, cost) for cost in (row_cost, 1.0))
    assert plan.rows * row_cost * len(plan.steps) <= 500
    assert (plan.rows * len(plan.steps) < usual.rows * len(usual.steps)) == (row_cost > 1)


def test_a_step_is_validated_once() -> None:
    assert plan_validation(2, 10**6, 5000).steps == (0, 1, 2)


def test_without_validation_rows_nothing_is_validated() -> None:
    assert plan_validation(100, 800, 0).steps == ()
