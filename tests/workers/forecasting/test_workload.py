"""Workloads from row lengths: cut, padded, shared and sorted as the engine does it."""

from __future__ import annotations

import pytest

from workers.contract.hyperparameters import Hyperparameters
from workers.forecasting.workload import RowLengths, estimate_workload

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


def test_share_of_truncated_answers() -> None:
    assert rows().cut_share(512) == 0.0
    assert rows().cut_share(149) == pytest.approx(0.5, abs=0.01)
    assert rows().cut_share(50) == 1.0


def test_share_is_interpolated() -> None:
    two = RowLengths(10, (100.0, 200.0), (100.0, 200.0), 5.0)
    assert two.cut_share(150) == pytest.approx(0.5)


def test_rows_that_lose_their_whole_answer_are_left_out() -> None:
    kept = rows().truncated(120)
    assert kept is not None
    assert kept.rows == pytest.approx(320 * 0.3, rel=0.1)
    assert max(kept.lengths) == 120
    assert kept.learned < 10
    assert rows().truncated(50) is None


def test_unmeasured_rows_have_no_lengths() -> None:
    assert RowLengths.from_report({"rows": 0}, 320) is None
    assert RowLengths.from_report({}, 320) is None


@pytest.mark.parametrize("is_packed", [True, False])
def test_padding_does_not_count(is_packed: bool) -> None:
    workload = estimate_workload(rows(), learn(lora_dropout=0.1), is_packed=is_packed)
    assert workload.computed_tokens == pytest.approx(8 * 150)
    assert workload.longest_row == pytest.approx(rows().quantile(80 / 81))


def test_the_largest_batch_of_padded_rows_holds_only_long_ones() -> None:
    packed, padded = (estimate_workload(rows(), learn(), is_packed=on) for on in (True, False))
    assert packed.computed_tokens < packed.largest_batch < padded.largest_batch
    assert padded.largest_batch == pytest.approx(8 * padded.longest_row)


def test_accumulation_keeps_the_tokens_of_a_step() -> None:
    whole, parts = (
        estimate_workload(
            rows(),
            learn(per_device_train_batch_size=batch, gradient_accumulation_steps=8 // batch),
            is_packed=False,
        )
        for batch in (8, 2)
    )
    assert (parts.micro_batches, parts.rows) == (4, 2)
    assert parts.computed_tokens == pytest.approx(whole.computed_tokens)
    assert parts.largest_batch < whole.largest_batch


def test_shared_prefix_is_computed_once() -> None:
    apart = estimate_workload(rows(), learn(lora_dropout=0.1), is_packed=True)
    together = estimate_workload(rows(), learn(), is_packed=True)
    assert together.computed_tokens == pytest.approx(apart.computed_tokens - 7 * 20)


def test_validation_rows_are_counted_at_every_validation() -> None:
    workload = estimate_workload(rows(), learn(max_steps=200), is_packed=False, validation_rows=40)
    # 200 steps of 8 rows allow 160 validation rows.
    assert workload.validations == 4
    assert workload.validation_tokens == pytest.approx(4 * 40 * 150)
    assert estimate_workload(rows(), learn(), is_packed=False).validations == 0


def test_validation_rows_of_another_dataset_have_their_own_lengths() -> None:
    options = {"is_packed": True, "validation_rows": 40}
    long = RowLengths(40, (300.0, 300.0), (299.0, 299.0), 60.0, prefix=5)
    workload = estimate_workload(rows(), learn(max_steps=200), **options, validation_lengths=long)
    # Each row costs as much as two, so that 80 fit into the 160 rows of all validations.
    assert workload.validations == 4
    assert workload.validation_tokens == pytest.approx(4 * (20 * (300 - 5) + 5))
    assert workload.validation_learned_tokens == pytest.approx(4 * 20 * 60)
    assert (
        workload.computed_tokens == estimate_workload(rows(), learn(max_steps=200), **options).computed_tokens
    )


def test_batch_is_limited_by_the_rows() -> None:
    workload = estimate_workload(rows(5), learn(per_device_train_batch_size=64), is_packed=False)
    assert (workload.rows, workload.micro_batches) == (5, 1)
