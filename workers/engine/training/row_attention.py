"""Attention of packed rows in bfloat16 on a CPU.

Products of whole blocks take half of the time of torch's own attention, in either direction, unless rows are
short. Scores are rounded to bfloat16, which changes losses less than the linear layers' own rounding does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# So many positions at a time: their weights stay in the cache, and read no later position's keys.
BLOCK = 128
# Torch's softmax in bfloat16 takes up to three times as long where the last dimension is no multiple of it.
WIDTH_MULTIPLE = 32


class Piece(NamedTuple):
    """Positions `start` to `end` of a packed sequence.

    They read the first `prefix` positions, and those from `row` up to their own.
    """

    start: int
    end: int
    row: int
    prefix: int

    @property
    def all_read(self) -> int:
        """Number of positions that each of them reads: the prefix, and those of its row before it."""
        return self.prefix + self.start - self.row

    def blocks(self) -> Iterator[Piece]:
        """Yield the same positions in pieces of at most `BLOCK`."""
        for start in range(self.start, self.end, BLOCK):
            yield self._replace(start=start, end=min(start + BLOCK, self.end))

    def own(self, states: Tensor, groups: int) -> Tensor:
        """Return its positions of [T, heads, width] as [groups, heads / groups, length, width]."""
        own = states[self.start : self.end]
        return own.view(len(own), groups, -1, own.shape[-1]).permute(1, 2, 0, 3)

    def read(self, states: Tensor, multiple: int = 1) -> Tensor:
        """Return the positions of [T, groups, width] that it reads, as [groups, length, width].

        Zeros behind them make the length a multiple of `multiple`.
        """
        parts = [states[: self.prefix], states[self.row : self.end]]
        filling = -(self.prefix + self.end - self.row) % multiple
        parts.append(states.new_zeros(filling, *states.shape[1:]))
        filled = [part for part in parts if len(part)]
        return (torch.cat(filled) if filled[1:] else filled[0]).transpose(0, 1)

    def add_read(self, total: Tensor, part: Tensor) -> None:
        """Add what `read` returns of it, or its gradient, to [T, groups, width]."""
        rows = part.transpose(0, 1)
        total[: self.prefix] += rows[: self.prefix]
        total[self.row : self.end] += rows[self.prefix : self.prefix + self.end - self.row]

    def hide_later(self, scores: Tensor) -> Tensor:
        """Set the scores of positions behind its own to -inf; [groups, heads / groups * length, read]."""
        heads = scores.view(len(scores), -1, self.end - self.start, scores.shape[-1])
        own = heads[..., self.all_read :]
        own.add_(torch.full(own.shape[-2:], float("-inf"), dtype=scores.dtype).triu_(1))
        return scores


class RowAttention(torch.autograd.Function):
    """Attention of the positions of each piece to those that they read; of and as [T, heads, width].

    `key` and `value` may have fewer heads: each serves a group of those of `query`. Keeps the three tensors
    alone, and computes the weights again backwards.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[Piece], scaling: float
    ) -> Tensor:
        attended, groups, width = torch.empty_like(query), key.shape[1], query.shape[2]
        blocks = [block for whole in pieces for block in whole.blocks()]
        for piece in blocks:
            # All heads of a group read the same keys, so they are rows of one matrix.
            rows = piece.own(query, groups).reshape(groups, -1, width) * scaling
            keys, values = (piece.read(states, WIDTH_MULTIPLE) for states in (key, value))
            weights = piece.hide_later(rows @ keys.mT).softmax(-1)
            own = piece.own(attended, groups)
            own.copy_((weights @ values).view(own.shape))
        ctx.save_for_backward(query, key, value)
        ctx.blocks, ctx.scaling = blocks, scaling
        return attended

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        query, key, value = ctx.saved_tensors
        grad_query = torch.empty_like(query)
        # In fp32 at least, because every row adds to the gradients of the prefix.
        dtype = torch.promote_types(query.dtype, torch.float32)
        grad_key, grad_value = (torch.zeros_like(states, dtype=dtype) for states in (key, value))
        groups, width = key.shape[1], query.shape[2]
        softmax_backward: Any = torch._softmax_backward_data  # type: ignore[attr-defined]
        for piece in ctx.blocks:
            rows, gradient = (
                piece.own(states, groups).reshape(groups, -1, width) for states in (query, grad_outputs[0])
            )
            rows = rows * ctx.scaling
            keys, values = (piece.read(states, WIDTH_MULTIPLE) for states in (key, value))
            weights = piece.hide_later(rows @ keys.mT).softmax(-1)
            grad_scores = softmax_backward(gradient @ values.mT, weights, -1, weights.dtype)
            own = piece.own(grad_query, groups)
            own.copy_((grad_scores @ keys).mul_(ctx.scaling).view(own.shape))
            piece.add_read(grad_key, grad_scores.mT @ rows)
            piece.add_read(grad_value, weights.mT @ gradient)
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None
