"""Batches without padding: rows stand behind one another in one sequence and attend to themselves alone.

Tokens with which all rows begin stand there once; every row attends to them too, and their gradient is the
sum over the rows. Causal attention over whole rows only: models with other attention take padded batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
    """Lengths of the pieces of a packed sequence: a shared prefix, perhaps empty, and each row's rest."""

    prefix: int
    rows: tuple[int, ...]


def pack(examples: Sequence[Example], device: torch.device, *, share_prefix: bool) -> Batch:
    """Return the rows as one sequence, positions counted from each row's own beginning."""
    prefix = shared_prefix(examples) if share_prefix else 0
    lengths = tuple(len(example.ids) - prefix for example in examples)
    pieces = [np.arange(prefix), *(np.arange(prefix, prefix + length) for length in lengths)]
    ids = np.concatenate([examples[0].ids[:prefix], *(example.ids[prefix:] for example in examples)])
    learn = np.concatenate(
        [np.zeros(prefix, dtype=np.bool_), *(example.loss_mask[prefix:] for example in examples)]
    )
    (targets,) = learn.nonzero()
    input_ids = torch.from_numpy(ids.astype(np.int64))
    return Batch(
        input_ids[None].to(device),
        torch.from_numpy(targets - 1).to(device),
        input_ids[targets].to(device),
        sum(len(example.ids) for example in examples),
        torch.from_numpy(np.concatenate(pieces)[None]).to(device),
        Packing(prefix, lengths),
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

    `query` [1, heads, T, head width]; `key` and `value` may have fewer heads. On a CPU bfloat16 is computed
    as fp32, which takes half the time at the usual lengths.
    """
    assert attention_mask is None, "packed rows need no mask"
    assert not dropout, "the base model stays in evaluation mode"
    assert not any(others.get(name) for name in OTHER_ATTENTION), "causal attention over whole rows only"
    dtype = query.dtype
    if dtype == torch.bfloat16 and query.device.type == "cpu":
        query, key, value = query.float(), key.float(), value.float()
    pieces = [packing.prefix, *packing.rows]
    (first_query, *queries), (first_key, *keys), (first_value, *values) = (
        torch.split(tensor, pieces, 2) for tensor in (query, key, value)
    )

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )

    if not packing.prefix:
        parts = [attend(q, k, v) for q, k, v in zip(queries, keys, values, strict=True)]
    else:
        parts = [attend(first_query, first_key, first_value)]
        for q, k, v in zip(queries, keys, values, strict=True):
            k, v = torch.cat((first_key, k), 2), torch.cat((first_value, v), 2)
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
            parts.append(attend(q, k, v, mask.tril(packing.prefix)))
    return torch.cat(parts, 2).transpose(1, 2).to(dtype).contiguous(), None
