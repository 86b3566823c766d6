"""The load of a run from the lengths of its rows: cut, padded, shared and sorted as the engine does it."""

from __future__ import annotations

import pytest

from workers.hyperparameters import Hyperparameters
from workers.workload import RowLengths, estimate_workload

REPORT = {
    "rows": 400,
    "max": 200,
    "quantiles": [100 + place for place in range(101)],
    "answer_ends": [99 + place for place in range(101)],
    "learned_mean": 10.0,
    "shared_prefix": 20,
}


def rows(count: int = 320) -> RowLengths:
    found = RowLengths.from_report(REPORT, count)
    assert found is not None
    return found


def learn(**changes: object) -> Hyperparameters:
    values = {"max_steps": 10, "max_length": 512, **changes}
    return Hyperparameters(**values)  # type: ignore[arg-type]


def test_it_says_which_share_of_the_answers_is_cut() -> None:
    assert rows().cut(512) == 0.0
    assert rows().cut(149) == pytest.approx(0.5, abs=0.01)
    assert rows().cut(50) == 1.0


def test_a_cut_between_two_lengths_counts_a_part() -> None:
    two = RowLengths(10, (100.0, 200.0), (100.0, 200.0), 5.0)
    assert two.cut(150) == pytest.approx(0.5)


def test_rows_that_lose_their_whole_answer_are_left_out() -> None:
    kept = rows().kept(120)
    assert kept is not None
    assert kept.rows == pytest.approx(320 * 0.3, rel=0.1)
    assert max(kept.lengths) == 120
    assert kept.learned < 10
    assert rows().kept(50) is None


def test_a_version_imported_earlier_is_read_from_its_histogram() -> None:
    histogram = {"up_to": [64, 128, 256, None], "rows": [0, 200, 200, 0]}
    found = RowLengths.from_report({"rows": 400, "max": 200, "p50": 128, "histogram": histogram}, 320)
    assert found is not None
    assert found.quantile(0.5) == pytest.approx(128, abs=2)
    assert (found.quantile(1.0), found.prefix) == (200, 0)
    assert found.cut(128) == pytest.approx(0.5, abs=0.02)


def test_nothing_is_known_of_rows_that_were_not_measured() -> None:
    assert RowLengths.from_report({"rows": 0}, 320) is None
    assert RowLengths.from_report({}, 320) is None


def test_a_step_is_padded_to_its_longest_row() -> None:
    asked = estimate_workload(rows(), learn(per_device_train_batch_size=8), shares=False)
    assert asked.computed == pytest.approx(8 * rows().quantile(8 / 9))
    assert asked.longest == pytest.approx(rows().quantile(80 / 81))


def test_smaller_batches_pad_less() -> None:
    whole = estimate_workload(rows(), learn(per_device_train_batch_size=8), shares=False)
    parts = estimate_workload(
        rows(), learn(per_device_train_batch_size=2, gradient_accumulation_steps=4), shares=False
    )
    assert (parts.batches, parts.rows) == (4, 2)
    assert parts.computed < whole.computed
    assert parts.seen == whole.seen


def test_a_shared_beginning_is_computed_once() -> None:
    apart = estimate_workload(rows(), learn(), shares=False)
    together = estimate_workload(rows(), learn(), shares=True)
    assert together.computed == pytest.approx(apart.computed - 7 * 20)
    assert estimate_workload(rows(), learn(lora_dropout=0.1), shares=True).computed == apart.computed


def test_held_out_rows_are_read_before_during_and_after_the_run() -> None:
    asked = estimate_workload(rows(), learn(max_steps=25), shares=False, validation_rows=40)
    # Every second step (25 / 10 rounded), before the first, and once more after the last.
    assert asked.validations == 14
    assert asked.validated == pytest.approx(14 * 40 * 150)
    assert estimate_workload(rows(), learn(), shares=False).validations == 0


def test_few_rows_fill_no_large_batch() -> None:
    asked = estimate_workload(rows(5), learn(per_device_train_batch_size=64), shares=False)
    assert (asked.rows, asked.batches) == (5, 1)
