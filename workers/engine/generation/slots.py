"""Keys and values of many rows, one slot each, and the attention of a step's tokens to their own slot.

A step is one sequence without padding: rows with a single new token first, then longer pieces of prompts.
Knows nothing of requests or adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache

from workers.engine.training.packed import attend

SLOTS = "slots"  # the attention's name in Transformers' registry
KINDS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Piece:
    """New tokens of one row: positions `start` to `end` of its slot."""

    slot: int
    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass
class Layout:
    """Places of the tokens of one step. Pieces of one token stand first."""

    pieces: Sequence[Piece]
    places: Tensor  # [T] in a layer's flattened storage
    singles: int
    longest: int  # of the rows with a single token
    single_slots: Tensor | None  # None if they are 0, 1, 2 ...
    is_gathered: bool  # only their slots are read, not all of the first ones
    lengths: Tensor  # of the rows in the slots that are read; 1 for a slot without a single token
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)
    piece_masks: dict[tuple[Piece, int | None], Tensor] = field(default_factory=dict)

    def single_mask(self, window: int | None) -> Tensor | None:
        """Return which keys each slot's single token reads, [slots, 1, 1, longest]; None for all."""
        if window not in self.masks:
            places = torch.arange(self.longest, device=self.lengths.device)
            mask = places < self.lengths[:, None]
            if window:
                mask &= places >= self.lengths[:, None] - window
            self.masks[window] = None if bool(mask.all()) else mask[:, None, None]
        return self.masks[window]

    def piece_mask(self, piece: Piece, window: int | None) -> Tensor | None:
        """Return which keys each token of a longer piece reads, [tokens, end]; None if it is causal."""
        if not piece.start and not (window and window < piece.end):
            return None
        # All layers of one window share it.
        if (piece, window) not in self.piece_masks:
            shape = piece.length, piece.end
            mask = torch.ones(shape, dtype=torch.bool, device=self.lengths.device).tril(piece.start)
            self.piece_masks[piece, window] = mask.triu(piece.start - window + 1) if window else mask
        return self.piece_masks[piece, window]


class SlotCache(Cache):
    """Keys and values of each layer, [slots, capacity, heads, width], made when a layer first writes."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(layers=[])
        self.device = device
        self.slots = 0
        self.capacity = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.layout: Layout | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # positions are always given

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_arguments: Any, **_options: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the step's keys and values [1, heads, T, width]; return the layer's whole storage."""
        assert self.layout is not None, "a step has a layout"
        stored = []
        for storage, states in ((self.keys, key_states), (self.values, value_states)):
            if layer_idx not in storage:
                shape = (self.slots, self.capacity, states.shape[1], states.shape[3])
                storage[layer_idx] = states.new_zeros(shape)
            layer = storage[layer_idx]
            layer.flatten(0, 1).index_copy_(0, self.layout.places, states[0].transpose(0, 1))
            stored.append(layer)
        return stored[0], stored[1]

    def lay_out(self, pieces: Sequence[Piece]) -> Layout:
        """Return the layout of a step with these pieces; those of one token stand first."""
        singles = [piece for piece in pieces if piece.length == 1]
        assert list(pieces[: len(singles)]) == singles, "single tokens stand first"
        places = [torch.arange(piece.start, piece.end) + piece.slot * self.capacity for piece in pieces]
        order = [piece.slot for piece in singles]
        slots = 1 + max(order, default=-1)
        # The first slots are read as they lie, unless few of them have a single token.
        is_gathered = 2 * len(order) < slots
        lengths = torch.ones(len(order) if is_gathered else slots, dtype=torch.int64)
        for number, piece in enumerate(singles):
            lengths[number if is_gathered else piece.slot] = piece.end
        return Layout(
            pieces,
            torch.cat(places).to(self.device),
            len(singles),
            max((piece.end for piece in singles), default=0),
            None if order == list(range(slots)) else torch.tensor(order, device=self.device),
            is_gathered,
            lengths.to(self.device),
        )

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of one slot to another."""
        for storage in (self.keys, self.values):
            for layer in storage.values():
                layer[target, :length] = layer[source, :length]

    def resize(self, kept: Sequence[int], slots: int, capacity: int) -> None:
        """Make room for `slots` rows of `capacity` tokens; slot i then holds what slot `kept[i]` held."""
        shared = min(capacity, self.capacity)
        for storage in (self.keys, self.values):
            for index, layer in storage.items():
                larger = layer.new_zeros((slots, capacity, *layer.shape[2:]))
                for place, slot in enumerate(kept):
                    larger[place, :shared] = layer[slot, :shared]
                storage[index] = larger
        self.slots, self.capacity = slots, capacity


def has_slot_attention(config: Any) -> bool:
    """Return whether every layer is causal attention over whole rows, or over a sliding window of them."""
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    changes = ("attn_logit_softcapping", "attention_chunk_size")
    return set(kinds) <= KINDS and not any(getattr(config, name, None) for name in changes)


def register() -> None:
    """Make the attention known to Transformers, which builds no mask for it."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(SLOTS, slot_attention)


def slot_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return the attention of each new token to the tokens of its slot, [1, T, heads, width].

    `query` [1, heads, T, width]; `key` and `value` are a layer's storage, with as many heads or fewer.
    """
    assert attention_mask is None, "slots need no mask"
    assert not dropout, "the base model stays in evaluation mode"
    assert not any(others.get(name) is not None for name in ("softcap", "s_aux")), "plain softmax only"
    kinds = getattr(module.config, "layer_types", None)
    # A layer that leaves its window to the mask would read too far back.
    assert not kinds or (kinds[module.layer_idx] == "sliding_attention") == bool(sliding_window)
    query = query[0].transpose(0, 1)  # [T, heads, width]
    output = query.new_empty(*query.shape[:2], value.shape[-1])
    singles = layout.singles
    if singles:
        output[:singles] = _attend_singles(query[:singles], key, value, layout, scaling, sliding_window)
    first = singles
    for piece in layout.pieces[singles:]:
        rows = slice(first, first + piece.length)
        first += piece.length
        output[rows] = _attend_piece(query[rows], key, value, layout, piece, scaling, sliding_window)
    return output[None], None


def _attend_singles(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, window: int | None
) -> Tensor:
    """Attend of one token per row, [rows, heads, width], all rows in one call."""
    slots, chosen = len(layout.lengths), layout.single_slots
    if layout.is_gathered:
        keys, values = (item[chosen, : layout.longest].transpose(1, 2) for item in (key, value))
    else:
        keys, values = (item[:slots, : layout.longest].transpose(1, 2) for item in (key, value))
    if chosen is not None and not layout.is_gathered:
        query = query.new_zeros(slots, *query.shape[1:]).index_copy_(0, chosen, query)
    # Query heads that share a key head stand as rows of one matrix.
    grouped = query.reshape(slots, key.shape[2], -1, query.shape[-1])
    mask = layout.single_mask(window)
    output = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
    output = output.reshape(slots, -1, value.shape[-1])
    return output if chosen is None or layout.is_gathered else output[chosen]


def _attend_piece(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    piece: Piece,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attend of several tokens of one row, [tokens, heads, width]."""
    keys, values = (item[piece.slot, : piece.end].transpose(0, 1)[None] for item in (key, value))
    output = attend(query.transpose(0, 1)[None], keys, values, layout.piece_mask(piece, window), scaling)
    return output[0].transpose(0, 1)
