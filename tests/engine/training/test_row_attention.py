"""Attention of long packed rows in bfloat16 on a CPU."""

from __future__ import annotations

import pytest
import torch

from workers.engine.training.packed import (
    Packing,
    attend_packed,
    attend_row_by_row,
    attention_dtype,
)
from workers.engine.training.row_attention import BLOCK, RowAttention

HEADS, GROUPS, WIDTH = 6, 2, 16
LONG = (BLOCK + 70, BLOCK, 31, 1)


def packing(prefix: int, rows: tuple[int, ...]) -> Packing:
    return Packing(prefix, rows, torch.zeros(0))


def states(length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, keys and values of a packed sequence."""
    torch.manual_seed(3)
    shapes = [(1, length, heads, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def result(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output and its gradients."""
    torch.manual_seed(4)
    weights = torch.randn(output.shape, dtype=torch.float64).to(output.dtype)
    return [output, *torch.autograd.grad((output * weights).sum(), inputs)]


@pytest.mark.parametrize("prefix", [0, 37])
@pytest.mark.parametrize("scaling", [0.25, 0.11])
def test_values_and_gradients_are_those_of_one_call_per_row(prefix: int, scaling: float) -> None:
    rows = packing(prefix, LONG)
    inputs = states(prefix + sum(LONG), torch.float64)
    query, key, value = (tensor[0] for tensor in inputs)
    own = RowAttention.apply(query, key, value, rows.pieces, scaling)[None]
    expected = result(attend_row_by_row(*inputs, rows, scaling), inputs)
    for found, wanted in zip(result(own, inputs), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prefix", [0, 37])
def test_bfloat16_rounds_at_most_twice_as_much_as_torchs_own_attention(prefix: int) -> None:
    rows = packing(prefix, LONG)
    inputs = states(prefix + sum(LONG), torch.bfloat16)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    wanted = result(attend_row_by_row(*exact, rows, 0.25), exact)
    torchs = result(attend_row_by_row(*inputs, rows, 0.25), inputs)
    found = result(attend_packed(*inputs, rows, 0.25), inputs)
    for one, other, target in zip(found, torchs, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - target).norm() < 2 * (other - target).norm()


def test_short_rows_are_computed_in_fp32_on_a_cpu() -> None:
    query = torch.zeros(1, 1, HEADS, WIDTH, dtype=torch.bfloat16)
    assert attention_dtype(query, packing(0, (56, 66))) == torch.float32
    assert attention_dtype(query, packing(0, (63, 66))) == torch.bfloat16
    assert attention_dtype(query, packing(100, (35, 30))) == torch.bfloat16
    assert attention_dtype(query.float(), packing(0, (512,))) == torch.float32
