"""Answers many requests at once: one base model, several LoRA adapters, continuous batching.

Each step is one forward over all running rows: prompts that begin, without padding, and one token of every
row that goes on. A row that ends leaves its slot at once, and a waiting request takes it. Prompts that begin
as an earlier one to the same adapter did take over its keys and values.

Models with other attention or caches than `slots.py` has, and adapters that are more than LoRA on linear
layers, take the plain path: each row alone through the model's own cache, in the same steps.
Text, stop strings and chat templates stay with the callers.
"""

from __future__ import annotations

import inspect
import itertools
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.contract.specs import SHORTEST_PREFIX
from workers.engine.generation.adapters import Adapters, Mix
from workers.engine.generation.requests import GenerationRequest, Row, Token
from workers.engine.generation.slots import SLOTS, Layout, Piece, SlotCache, has_slot_attention, register
from workers.engine.training.data import common_prefix_length
from workers.engine.training.encoding import Ids
from workers.engine.training.packed import attention

# Tokens of prompts that one step reads: a long prompt must not hold up the other rows for long.
STEP_TOKENS = 256
CAPACITY_STEP = 64
PROBE = (5, 3)  # lengths of the prompts with which a model is compared on both paths
# Types whose answers in slots the tests compare with the model's own.
SLOT_TYPES = frozenset({"gemma3_text", "gpt2", "llama", "mistral", "qwen2", "qwen3"})


@dataclass
class _Content:
    """A slot's row: running, or ended with its keys and values still there."""

    row: Row
    freed_at: int = 0  # 0: running

    def begins_as(self, ids: Ids, least: int) -> int:
        """Return how many of the first `ids` it has, or will have computed; 0 for less than `least`."""
        row = self.row
        coming = 0 if self.freed_at else min(row.prompt_length, row.length)
        limit = min(len(ids), max(row.computed, coming))
        # One token rules out most rows, which are many: each that waits is compared with each slot.
        if limit < least or ids[least - 1] != row.ids[least - 1]:
            return 0
        length = common_prefix_length([ids, row.ids], limit)
        return length if length >= least else 0


class Generator:
    """One base model with its adapters, and the requests to them."""

    def __init__(self, base: Any, device: torch.device, *, max_rows: int, max_tokens: int) -> None:
        """`base`: a loaded model. `max_rows`: requests at a time. `max_tokens`: of all caches together."""
        self._base, self._device = base, device
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._adapters = Adapters(base)
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []
        self._cache = SlotCache(device)
        self._contents: list[_Content | None] = []
        self._releases = 0
        self._keeps_logits = "logits_to_keep" in inspect.signature(base.forward).parameters
        self.is_batched = self._can_batch()

    # Adapters

    @property
    def adapters(self) -> list[str]:
        """Return the names of the loaded adapters, least recently used first."""
        return list(self._adapters)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load one more adapter. Raises ModelError, and TargetError if it does not fit the base model."""
        self._adapters.load(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Free an adapter that no request uses; raise ValueError otherwise."""
        if any(row.request.adapter == name for row in (*self._waiting, *self._running)):
            raise ValueError(f"The adapter {name} is in use.")
        self._adapters.unload(name)
        self._contents = [
            None if content and content.row.request.adapter == name else content for content in self._contents
        ]

    def changes_outputs(self, name: str) -> bool:
        """Return whether the adapter differs from none at all."""
        return self._adapters.changes_outputs(name)

    # Requests

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._running

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. Raises ValueError if it can never run, KeyError for an adapter not loaded."""
        sampling, row = request.sampling, Row.of(request)
        if not len(request.prompt) or (sampling.max_new_tokens < 1 and request.reference is None):
            raise ValueError("A request needs a prompt and at least one token to generate.")
        if request.reference is not None and sampling.temperature:
            raise ValueError("A request with a reference needs temperature 0.")
        needed = len(row.ids)
        if self._round_up(needed) > self._max_tokens:
            raise ValueError(f"The request needs {needed:,} tokens; there is room for {self._max_tokens:,}.")
        if request.adapter is not None:
            if request.adapter not in self._adapters:
                raise KeyError(request.adapter)
            self._adapters.use(request.adapter)
        self._waiting.append(row)

    def cancel(self, key: Hashable) -> None:
        """Forget the request with this key, if it has not ended; nothing more is answered to it."""
        self._waiting = deque(row for row in self._waiting if row.request.key != key)
        for row in [row for row in self._running if row.request.key == key]:
            self._release(row)

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Admit waiting requests, compute one step of every running row, and return the new tokens."""
        self._admit()
        tokens = self._mixed_step()
        for row in [row for row in self._running if row.slot < 0]:
            tokens += self._plain_step(row)
        ended = {token.key for token in tokens if token.finish}
        for row in [row for row in self._running if row.request.key in ended]:
            self._release(row)
        return tokens

    # Admission

    def _admit(self) -> None:
        # Rows that wait for the beginning of another one are passed over, and few of them are looked at.
        for row in list(itertools.islice(self._waiting, 2 * self._max_rows)):
            if len(self._running) >= self._max_rows:
                return
            if self.is_batched and self._adapters.is_mixable(row.request.adapter):
                if row.awaited in self._running and row.awaited.computed < row.awaited_tokens:
                    continue
                donor, common = self._find_donor(row.request.adapter, row.ids[: row.due()[0]])
                if donor is not None and donor.row.computed < common:
                    row.awaited, row.awaited_tokens = donor.row, common
                    continue
                if not self._take_slot(row, donor, common):
                    return
            elif self._plain_tokens() + len(row.ids) > self._max_tokens - self._slot_tokens():
                return
            self._waiting.remove(row)
            self._running.append(row)

    def _find_donor(self, adapter: str | None, ids: Ids) -> tuple[_Content | None, int]:
        """Return the slot's content that shares most of the first tokens, and how many."""
        found, common = None, 0
        for content in self._contents:
            if content is not None and content.row.request.adapter == adapter:
                length = content.begins_as(ids, max(SHORTEST_PREFIX, common + 1))
                if length:
                    found, common = content, length
        return found, common

    def _take_slot(self, row: Row, donor: _Content | None, common: int) -> bool:
        """Give the row a slot with the donor's first tokens; return False if there is no room yet."""
        capacity = self._round_up(len(row.ids))
        if not self._make_room(capacity, donor):
            return False
        free = [slot for slot, content in enumerate(self._contents) if content is None or content.freed_at]
        source = self._contents.index(donor) if donor in self._contents else -1
        if source in free:
            slot = source
        else:
            slot = min(free, key=lambda place: getattr(self._contents[place], "freed_at", 0))
            if source >= 0:
                self._cache.copy(source, slot, common)
        row.slot = slot
        row.computed = common if source >= 0 else 0
        self._contents[slot] = _Content(row)
        return True

    def _make_room(self, capacity: int, donor: _Content | None) -> bool:
        """Let a slot of `capacity` tokens be free, if the budget allows for one."""
        busy = [slot for slot, content in enumerate(self._contents) if content and not content.freed_at]
        # After a long row that has ended there would be room for few slots.
        is_reset = not busy and self._cache.slots < self._max_rows
        larger = capacity if is_reset else max(capacity, self._cache.capacity)
        limit = min(self._max_rows, (self._max_tokens - self._plain_tokens()) // larger)
        if limit <= len(busy):
            return False
        if larger != self._cache.capacity or len(busy) >= self._cache.slots:
            ended = [slot for slot, content in enumerate(self._contents) if content and content.freed_at]
            ended.sort(key=lambda slot: self._contents[slot] is not donor)
            self._resize([*busy, *ended], min(limit, 2 * len(busy) + 2), larger)
        return True

    def _resize(self, kept: list[int], slots: int, capacity: int) -> None:
        kept = [slot for slot in kept if self._contents[slot].row.computed <= capacity][:slots]  # type: ignore[union-attr]
        self._cache.resize(kept, slots, capacity)
        self._contents = [self._contents[slot] for slot in kept] + [None] * (slots - len(kept))
        for slot, content in enumerate(self._contents):
            if content is not None:
                content.row.slot = slot

    def _plain_tokens(self) -> int:
        return sum(len(row.ids) for row in self._running if row.slot < 0)

    def _slot_tokens(self) -> int:
        """Return the tokens that all slots have room for; free them if no row has one."""
        if not any(row.slot >= 0 for row in self._running):
            self._resize([], 0, 0)
        return self._cache.slots * self._cache.capacity

    @staticmethod
    def _round_up(tokens: int) -> int:
        return -(-tokens // CAPACITY_STEP) * CAPACITY_STEP

    def _release(self, row: Row) -> None:
        self._running.remove(row)
        row.past = None
        if row.slot >= 0:
            self._releases += 1
            content = self._contents[row.slot]
            assert content is not None
            content.freed_at = self._releases

    # One step

    def _mixed_step(self) -> list[Token]:
        """Compute one step of the rows with slots."""
        planned = self._plan()
        if not planned:
            return []
        pieces = [piece for _, piece in planned]
        layout = self._cache.lay_out(pieces)
        names = [row.request.adapter for row, _ in planned]
        lengths = [piece.length for piece in pieces]
        long = itertools.groupby(
            zip(names[layout.singles :], lengths[layout.singles :], strict=True), lambda item: item[0]
        )
        spans = [(name, sum(length for _, length in items)) for name, items in long]
        self._adapters.mix(Mix(names[: layout.singles], spans))
        due = [[place for place in row.due() if piece.start <= place < piece.end] for row, piece in planned]
        starts = itertools.accumulate(lengths, initial=0)
        logits = self._forward(
            np.concatenate([row.ids[piece.start : piece.end] for row, piece in planned]),
            np.concatenate([np.arange(piece.start, piece.end) for piece in pieces]),
            [
                start + place - piece.start
                for start, piece, places in zip(starts, pieces, due, strict=False)
                for place in places
            ],
            layout,
        )
        tokens = []
        parts = torch.split(logits, [len(places) for places in due])
        for (row, piece), places, part in zip(planned, due, parts, strict=True):
            row.computed = piece.end
            tokens += row.take(places, part)
        return tokens

    def _plan(self) -> list[tuple[Row, Piece]]:
        """Return the next tokens of each row with a slot: those of one token first, then by adapter."""
        room = STEP_TOKENS
        planned: list[tuple[Row, Piece]] = []
        for row in self._running:
            if row.slot < 0:
                continue
            end = min(row.length, row.computed + max(1, room))
            # Rows that go on are never held up; beginnings share the step's tokens.
            if end - row.computed > 1 or end < row.length:
                if room <= 0:
                    continue
                room -= end - row.computed
            planned.append((row, Piece(row.slot, row.computed, end)))

        def place(item: tuple[Row, Piece]) -> tuple[bool, str, int]:
            row, piece = item
            return piece.length > 1, (row.request.adapter or "") if piece.length > 1 else "", row.slot

        return sorted(planned, key=place)

    def _forward(self, ids: Ids, positions: Ids, ends: Sequence[int], layout: Layout) -> Tensor:
        self._cache.layout = layout
        with attention(self._base.config, SLOTS):
            output = self._base(
                input_ids=self._tensor(ids),
                position_ids=self._tensor(positions),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=torch.tensor(ends, dtype=torch.int64, device=self._device),
                layout=layout,
            )
        logits: Tensor = output.logits[0]
        return logits

    def _plain_step(self, row: Row) -> list[Token]:
        """Compute one step of one row, through the model's own cache."""
        self._adapters.activate(row.request.adapter)
        due, was_reading = row.due(), row.is_reading
        # All logits of a long prompt would take more memory than its keys and values.
        kept = {"logits_to_keep": row.length - due[0]} if self._keeps_logits else {}
        output = self._base(
            input_ids=self._tensor(row.ids[row.computed : row.length]),
            past_key_values=row.past,
            use_cache=True,
            **kept,
        )
        tokens = row.take(due, output.logits[0, [place - row.length for place in due]])
        # A cache that has read a reference, or none at all, does not go on: the row is read again.
        row.past = None if was_reading else getattr(output, "past_key_values", None)
        row.computed = 0 if row.past is None else row.length - 1
        return tokens

    def _tensor(self, values: Ids) -> Tensor:
        return torch.from_numpy(values.astype(np.int64))[None].to(self._device)

    # The choice of the path

    @torch.inference_mode()
    def _can_batch(self) -> bool:
        """Return whether the model gives its own logits in slots: of two prompts, and of one token more."""
        if not has_slot_attention(self._base.config):
            return False
        register()
        prompts = [np.arange(3, 3 + length, dtype=np.int32) for length in PROBE]
        rows = [np.append(prompt, 3).astype(np.int32) for prompt in prompts]
        expected = [self._base(input_ids=self._tensor(row), use_cache=False).logits[0, -2:] for row in rows]
        self._cache.resize([], len(rows), CAPACITY_STEP)
        steps = (
            [Piece(slot, 0, len(prompt)) for slot, prompt in enumerate(prompts)],
            [Piece(slot, len(prompt), len(prompt) + 1) for slot, prompt in enumerate(prompts)],
        )
        computed = []
        try:
            for pieces in steps:
                ids = np.concatenate(
                    [row[piece.start : piece.end] for row, piece in zip(rows, pieces, strict=True)]
                )
                positions = np.concatenate([np.arange(piece.start, piece.end) for piece in pieces])
                ends = [end - 1 for end in itertools.accumulate(piece.length for piece in pieces)]
                computed.append(self._forward(ids, positions, ends, self._cache.lay_out(pieces)))
        # Models differ in what they take and in how they use a cache.
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
            return False
        finally:
            self._cache = SlotCache(self._device)
        is_exact = expected[0].dtype == torch.float32
        if not is_exact and self._base.config.model_type in SLOT_TYPES:
            # In 16 bits another order of sums changes logits as much as a missing key may.
            return True
        tolerance = 1e-4 if is_exact else 3e-2
        return torch.allclose(torch.stack(expected, 1), torch.stack(computed), rtol=tolerance, atol=tolerance)
