"""Batches without padding: rows stand behind one another in one sequence and attend to themselves alone.

Tokens with which all rows begin stand there once; every row attends to them too, and their gradient is the
sum over the rows. Causal attention over whole rows only: models with other attention take padded batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.engine.training.data import Batch, shared_prefix
from workers.engine.training.encoding import Example

PACKED = "packed"  # the attention's name in Transformers' registry
# Arguments of other attention than causal attention over whole rows.
OTHER_ATTENTION = ("sliding_window", "softcap", "s_aux")


@dataclass(frozen=True)
class Packing:
    """Lengths of the pieces of a packed sequence: a shared prefix, perhaps empty, and each row's rest.

    `target_positions` [n]: positions in the sequence whose next token is a target.
    """

    prefix: int
    rows: tuple[int, ...]
    target_positions: Tensor = field(compare=False)


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
    dtype = attention_dtype(query)
    rows, keys, values = (tensor.transpose(1, 2).to(dtype) for tensor in (query, key, value))
    return attend_packed(rows, keys, values, packing, scaling).to(query.dtype), None


def attention_dtype(query: Tensor) -> torch.dtype:
    """Return fp32 for bfloat16 on a CPU, which takes half the time at the usual lengths."""
    is_slow = query.dtype == torch.bfloat16 and query.device.type == "cpu"
    return torch.float32 if is_slow else query.dtype


def attend_packed(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None
) -> Tensor:
    """Return the attention of each row to the prefix and to itself, of and as [1, T, heads, head width]."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        has_groups = q.shape[1] != k.shape[1]
        is_causal = mask is None
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=is_causal, scale=scaling, enable_gqa=has_groups
        ).transpose(1, 2)

    prefix, pieces = packing.prefix, [packing.prefix, *packing.rows]
    (first_query, *queries), (first_key, *keys), (first_value, *values) = (
        torch.split(tensor, pieces, 1) for tensor in (query, key, value)
    )
    if not prefix:
        parts = [attend(q, k, v) for q, k, v in zip(queries, keys, values, strict=True)]
    else:
        longest = max(packing.rows)
        mask = torch.ones(longest, prefix + longest, dtype=torch.bool, device=query.device).tril(prefix)
        parts = [attend(first_query, first_key, first_value)]
        for q, k, v in zip(queries, keys, values, strict=True):
            k, v = torch.cat((first_key, k), 1), torch.cat((first_value, v), 1)
            parts.append(attend(q, k, v, mask[: q.shape[1], : k.shape[1]]))
    return torch.cat(parts, 1)
