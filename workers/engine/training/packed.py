"""Batches without padding: rows stand behind one another in one sequence and attend to themselves alone.

Tokens with which all rows begin stand there once; every row attends to them too, and their gradient is the
sum over the rows. Causal attention over whole rows only: models with other attention take padded batches.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.contract.specs import LONG_ROW_PRODUCTS
from workers.engine.training.data import Batch, shared_prefix
from workers.engine.training.encoding import Example
from workers.engine.training.row_attention import Piece, RowAttention

PACKED = "packed"  # the attention's name in Transformers' registry
# Arguments of other attention than causal attention over whole rows.
OTHER_ATTENTION = ("sliding_window", "softcap", "s_aux")
# The pieces with which the attention of all rows at once is compared with that of each row.
PROBE = (3, (2, 5, 1))


@dataclass(frozen=True)
class Packing:
    """Lengths of the pieces of a packed sequence: a shared prefix, perhaps empty, and each row's rest.

    `target_positions` [n]: positions in the sequence whose next token is a target.
    """

    prefix: int
    rows: tuple[int, ...]
    target_positions: Tensor = field(compare=False)

    @functools.cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Return the prefix, if there is one, and each row's rest with the positions that they read."""
        ends = itertools.accumulate(self.rows, initial=self.prefix)
        rows = [Piece(start, end, start, self.prefix) for start, end in itertools.pairwise(ends)]
        return (Piece(0, self.prefix, 0, 0), *rows) if self.prefix else tuple(rows)

    @functools.cached_property
    def has_long_rows(self) -> bool:
        """Tell whether bfloat16 pays on a CPU, by the mean row's products of queries and keys."""
        products = sum(length * (self.prefix + length) for length in self.rows)
        return products >= LONG_ROW_PRODUCTS * len(self.rows)

    @functools.cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return where each piece begins and ends among the queries, and among the keys that it reads."""
        own = [self.prefix, *self.rows] if self.prefix else [*self.rows]
        read = [self.prefix + length for length in self.rows]
        starts = [
            [0, *itertools.accumulate(lengths)] for lengths in (own, own[: len(own) - len(read)] + read)
        ]
        device = self.target_positions.device
        queries, keys = (torch.tensor(ends, dtype=torch.int32, device=device) for ends in starts)
        return queries, keys


def pack(
    examples: Sequence[Example], device: torch.device, *, share_prefix: bool, multiple: int = 1
) -> Batch:
    """Return the rows as one sequence, positions counted from each row's own beginning.

    Each row ends before its last target, because no target follows there. The last row gets tokens behind its
    end that nothing attends to, so that the length is a multiple of `multiple`.
    """
    prefix = shared_prefix(examples) if share_prefix else 0
    ends = [max(1, len(example.ids) - 1 - int(example.loss_mask[::-1].argmax())) for example in examples]
    lengths = [end - prefix for end in ends]
    filling = -(prefix + sum(lengths)) % multiple
    lengths[-1] += filling
    # The filling repeats the last position, because a model may have no further one.
    pieces = [
        np.arange(prefix),
        *(np.arange(prefix, end) for end in ends),
        np.full(filling, ends[-1] - 1),
    ]
    rows = list(zip(examples, ends, strict=True))
    ids = np.concatenate(
        [
            examples[0].ids[:prefix],
            *(row.ids[prefix:end] for row, end in rows),
            np.full(filling, examples[-1].ids[ends[-1] - 1]),
        ]
    )
    # The token after each position, and whether it is a target.
    following = np.concatenate(
        [examples[0].ids[:prefix], *(row.ids[prefix + 1 : end + 1] for row, end in rows)]
    )
    learn = np.concatenate(
        [np.zeros(prefix, dtype=np.bool_), *(row.loss_mask[prefix + 1 : end + 1] for row, end in rows)]
    )
    positions = torch.from_numpy(learn.nonzero()[0]).to(device)
    return Batch(
        torch.from_numpy(ids.astype(np.int64))[None].to(device),
        positions,
        torch.from_numpy(following[learn].astype(np.int64)).to(device),
        sum(len(example.ids) for example in examples),
        torch.from_numpy(np.concatenate(pieces)[None]).to(device),
        Packing(prefix, tuple(lengths), positions),
    )


def can_pack(config: Any) -> bool:
    """Return whether every layer of the model is causal attention over whole rows."""
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    changes = ("attn_logit_softcapping", "attention_chunk_size")
    return set(kinds) == {"full_attention"} and not any(getattr(config, name, None) for name in changes)


@contextmanager
def attention(config: Any, name: str) -> Iterator[None]:
    """Use one of Transformers' attention implementations for a while."""
    usual = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = usual


def register() -> None:
    """Make the attention known to Transformers, which builds no mask for it."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return the attention of each row to the prefix and to itself, [1, T, heads, head width].

    `query` [1, heads, T, head width]; `key` and `value` may have fewer heads.
    """
    assert attention_mask is None, "packed rows need no mask"
    assert not dropout, "the base model stays in evaluation mode"
    assert not any(others.get(name) for name in OTHER_ATTENTION), "causal attention over whole rows only"
    dtype = attention_dtype(query, packing)
    rows, keys, values = (tensor.transpose(1, 2).to(dtype) for tensor in (query, key, value))
    return attend_packed(rows, keys, values, packing, scaling).to(query.dtype), None


def attention_dtype(query: Tensor, packing: Packing) -> torch.dtype:
    """Return fp32 for short rows in bfloat16 on a CPU, where it takes less time."""
    is_slow = query.dtype == torch.bfloat16 and query.device.type == "cpu" and not packing.has_long_rows
    return torch.float32 if is_slow else query.dtype


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Return attention under a boolean mask, or causal attention; of and as [rows, heads, T, head width].

    `key` and `value` may have fewer heads. On a card, torch computes that without a matrix of all pairs of
    tokens only in 16 bits and without a mask; else they get as many heads.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.device.type != "cpu" and (mask is not None or query.dtype == torch.float32):
        key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def attend_packed(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None
) -> Tensor:
    """Return the attention of each row to the prefix and to itself, of and as [1, T, heads, head width]."""
    if at_once := attention_of_all_rows(query, key):
        return at_once(query, key, value, packing, scaling)
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        apply: Any = RowAttention.apply
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        attended: Tensor = apply(query[0], key[0], value[0], packing.pieces, scale)[None]
        return attended
    return attend_row_by_row(query, key, value, packing, scaling)


def attend_row_by_row(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None
) -> Tensor:
    """Compute `attend_packed` with one call per row."""

    def attend_row(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return attend(q, k, v, mask, scaling).transpose(1, 2)

    prefix, pieces = packing.prefix, [packing.prefix, *packing.rows]
    (first_query, *queries), (first_key, *keys), (first_value, *values) = (
        torch.split(tensor, pieces, 1) for tensor in (query, key, value)
    )
    if not prefix:
        parts = [attend_row(q, k, v) for q, k, v in zip(queries, keys, values, strict=True)]
    else:
        longest = max(packing.rows)
        mask = torch.ones(longest, prefix + longest, dtype=torch.bool, device=query.device).tril(prefix)
        parts = [attend_row(first_query, first_key, first_value)]
        for q, k, v in zip(queries, keys, values, strict=True):
            k, v = torch.cat((first_key, k), 1), torch.cat((first_value, v), 1)
            parts.append(attend_row(q, k, v, mask[: q.shape[1], : k.shape[1]]))
    return torch.cat(parts, 1)


Attention = Callable[[Tensor, Tensor, Tensor, Packing, float | None], Tensor]


def attention_of_all_rows(query: Tensor, key: Tensor) -> Attention | None:
    """Return a function like `attend_row_by_row` that needs one call, where torch has one for this device."""
    if query.device.type != "cuda" or query.dtype not in (torch.bfloat16, torch.float16):
        return None
    return _proven_attention(query.device, query.dtype, query.shape[2], key.shape[2], query.shape[3])


@functools.cache
def _proven_attention(
    device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, width: int
) -> Attention | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # an earlier torch
        return None
    found = functools.partial(attend_at_once, varlen_attn)
    shapes = [(1, PROBE[0] + sum(PROBE[1]), count, width) for count in (heads, key_heads, key_heads)]
    inputs = [_probe_values(shape, device) for shape in shapes]
    return found if equals_row_by_row(found, [states.to(dtype) for states in inputs]) else None


def _probe_values(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return values as irregular as random ones, which leave the generator of dropout as it is."""
    numbers = torch.arange(math.prod(shape), dtype=torch.float64, device=device)
    return numbers.square().mul(0.37).sin().view(shape)


def attend_at_once(
    varlen_attention: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None
) -> Tensor:
    """Compute `attend_packed` with one call; queries of a row stand at the end of the keys that it reads."""
    prefix, rows = packing.prefix, packing.rows
    if prefix:
        key, value = (
            torch.cat([first, *(part for row in own for part in (first, row))], 1)
            for first, *own in (torch.split(tensor, [prefix, *rows], 1) for tensor in (key, value))
        )
    longest = max(prefix, *rows), max(prefix + length for length in rows)
    attended: Tensor = varlen_attention(
        query[0],
        key[0],
        value[0],
        *packing.bounds,
        *longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return attended[None]


def equals_row_by_row(attention: Attention, inputs: Sequence[Tensor]) -> bool:
    """Return whether values and gradients are those of one call per row, with a prefix and without one."""
    with torch.enable_grad():
        for prefix, rows in (PROBE, (0, (PROBE[0], *PROBE[1]))):
            packing = Packing(prefix, rows, torch.zeros(0, device=inputs[0].device))
            results = []
            for compute in (attend_row_by_row, attention):
                query, key, value = (tensor.clone().requires_grad_(True) for tensor in inputs)
                try:
                    output = compute(query, key, value, packing, None)
                    gradients = torch.autograd.grad(output.float().square().sum(), (query, key, value))
                except (RuntimeError, TypeError, ValueError):  # another card, or another signature
                    return False
                results.append([output.detach(), *gradients])
            for own, other in zip(*results, strict=True):
                # Written so that a value that is no number is not equal.
                if not float((own - other).float().norm()) <= 3e-2 * float(own.float().norm()):
                    return False
    return True
