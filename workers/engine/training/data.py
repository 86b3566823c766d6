"""Reads the rows of a split and encodes them, orders them for a run, and pads batches.

Knows nothing of models or the loop.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workers.contract.errors import DataError
from workers.contract.events import Progress, Report, ShouldStop
from workers.contract.specs import SHORTEST_PREFIX, DataSpec
from workers.engine.importing.split_files import SCHEMA, rows_sha256
from workers.engine.runtime import stop_if_asked
from workers.engine.training.encoding import CanonicalRow, Example, Ids, RowEncoder

if TYPE_CHECKING:
    from workers.engine.training.packed import Packing

ROWS_PER_BATCH = 256
CHARACTERS_PER_BATCH = 2_000_000
GROUPED_STEPS = 50  # among which rows are grouped by length


class Split:
    """The rows of one split, or of several together. JSON is parsed only for the rows that are read."""

    def __init__(self, data: DataSpec, *splits: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.name = splits[0] if len(splits) == 1 else "all"
        tables = []
        for split in splits:
            try:
                with pq.ParquetFile(Path(data.path) / f"{split}.parquet") as file:
                    tables.append(file.read(columns=SCHEMA.names))
            except (OSError, ValueError, KeyError) as error:
                raise DataError(
                    f"The {split} rows of this dataset cannot be read. Import the file again."
                ) from error
        self._table = pa.concat_tables(tables)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def row(self, index: int) -> CanonicalRow:
        """Return row `index` of the split, from 0."""
        number, messages, text = (
            self._table.column(name)[index].as_py() for name in ("row", "messages", "text")
        )
        return CanonicalRow(number, json.loads(messages) if messages is not None else None, text)

    def groups(self) -> dict[int, int]:
        """Return row number -> number of the first row of its group."""
        numbers, groups = (self._table.column(name).to_pylist() for name in ("row", "group"))
        return dict(zip(numbers, groups, strict=True))

    def characters(self) -> Ids:
        """Return the characters of each row: a measure of its length before it is tokenized."""
        import pyarrow.compute as pc

        compute: Any = pc
        sizes = [compute.utf8_length(self._table.column(name)).fill_null(0) for name in ("messages", "text")]
        return np.asarray(compute.add(*sizes).to_numpy(), dtype=np.int32)

    def count_rows_in(self, other: Split) -> int:
        """Return how many rows are also rows of the other split."""
        import pyarrow.compute as pc

        compute: Any = pc
        count = 0
        for name in ("messages", "text"):
            known = other._table.column(name).combine_chunks()
            is_known = compute.is_in(self._table.column(name), value_set=known, skip_nulls=True)
            count += compute.sum(is_known).as_py() or 0
        return count

    @functools.cached_property
    def sha256(self) -> str:
        """Return the checksum of the rows, which the import froze for the test split."""
        return rows_sha256(self._table)


def encode_rows(
    tokenizer: Any, split: Split, positions: Sequence[int], *, report: Report, should_stop: ShouldStop
) -> dict[int, Example]:
    """Return position in the split -> untruncated example."""
    done: dict[int, Example] = {}
    batch: dict[int, CanonicalRow] = {}
    characters = 0
    report(Progress("tokenizing", 0, len(positions)))
    with RowEncoder(tokenizer) as encoder:
        for number, position in enumerate(positions, 1):
            batch[position] = row = split.row(position)
            characters += row.size
            is_full = len(batch) >= ROWS_PER_BATCH or characters >= CHARACTERS_PER_BATCH
            if is_full or number == len(positions):
                stop_if_asked(should_stop)
                done.update(zip(batch, encoder.encode(list(batch.values())), strict=True))
                report(Progress("tokenizing", number, len(positions)))
                batch, characters = {}, 0
    return done


# Order


@functools.lru_cache(maxsize=16)
def epoch_order(count: int, seed: int, epoch: int) -> Ids:
    """Return a permutation of range(count). It depends on the arguments only, so any step can resume."""
    return np.random.default_rng([seed, epoch]).permutation(count).astype(np.int32)


def step_rows(count: int, rows_per_step: int, seed: int, step: int, lengths: Ids | None = None) -> list[int]:
    """Return the rows of optimizer step `step` (from 1). One of an epoch's last steps may be short.

    With `lengths` [count], rows of similar length share a step: the rows of every `GROUPED_STEPS` steps are
    sorted by length, and their steps are taken in a random order of their own.
    """
    steps = math.ceil(count / rows_per_step)
    epoch, place = divmod(step - 1, steps)
    rows = epoch_order(count, seed, epoch)
    if lengths is not None:
        first = place - place % GROUPED_STEPS
        rows = rows[first * rows_per_step : (first + GROUPED_STEPS) * rows_per_step]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        turns = np.random.default_rng([seed, epoch, first]).permutation(min(GROUPED_STEPS, steps - first))
        place = int(turns[place - first])
    return [int(index) for index in rows[place * rows_per_step : (place + 1) * rows_per_step]]


# Batches


@dataclass(frozen=True)
class Batch:
    """The input of one forward pass.

    `input_ids` [rows, longest], padded on the right, or [1, T] if rows are packed. `target_positions` [n]:
    flat positions in `input_ids` whose next token is a target of the same row. `targets` [n]: those tokens.
    `tokens`: number of tokens of the rows, without padding. `position_ids` [1, T], `packing`: of packed rows.
    """

    input_ids: Tensor
    target_positions: Tensor
    targets: Tensor
    tokens: int
    position_ids: Tensor | None = None
    packing: Packing | None = None


def pad(examples: Sequence[Example], device: torch.device) -> Batch:
    """Pad rows to one batch, masked by length: in many models the end-of-turn token is also the pad token."""
    longest = max(len(example.ids) for example in examples)
    ids = np.zeros((len(examples), longest), dtype=np.int64)
    learn = np.zeros((len(examples), longest), dtype=np.bool_)
    for place, example in enumerate(examples):
        ids[place, : len(example.ids)] = example.ids
        learn[place, : len(example.ids)] = example.loss_mask
    rows, columns = learn.nonzero()
    return Batch(
        torch.from_numpy(ids).to(device),
        torch.from_numpy(rows * longest + columns - 1).to(device),
        torch.from_numpy(ids[rows, columns]).to(device),
        sum(len(example.ids) for example in examples),
    )


def shared_prefix(examples: Sequence[Example]) -> int:
    """Return how many tokens all rows begin with, before the first token that predicts a target."""
    ends = [int(item.loss_mask.argmax()) - 1 if item.target_count else len(item.ids) - 1 for item in examples]
    length = common_prefix_length([example.ids for example in examples], max(0, min(ends)))
    return length if len(examples) > 1 and length >= SHORTEST_PREFIX else 0


def common_prefix_length(sequences: Sequence[Ids], limit: int) -> int:
    """Return how many of the first `limit` tokens are equal in all sequences."""
    for sequence in sequences[1:]:
        different = np.flatnonzero(sequences[0][:limit] != sequence[:limit])
        limit = int(different[0]) if len(different) else limit
    return limit


def cut_batch(examples: Sequence[Example], most_tokens: int, prefix: int = 0) -> list[list[Example]]:
    """Cut rows into as few parts of nearly equal size as have about `most_tokens` tokens at most.

    No row is cut. Tokens of a `prefix` that all rows share do not count.
    """
    lengths = np.cumsum([len(example.ids) - prefix for example in examples])
    total = int(lengths[-1])
    count = min(len(examples), -(-total // max(1, most_tokens)))
    parts: list[list[Example]] = [[] for _ in range(count)]
    for example, end in zip(examples, lengths, strict=True):
        # By the middle of the row in the sequence of all of them.
        middle = int(end) - (len(example.ids) - prefix) / 2
        parts[int(middle * count / total)].append(example)
    return [part for part in parts if part]


def micro_batches(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """Batch rows of similar length to pad little, the longest first: later batches reuse the memory."""
    ordered = sorted(examples, key=lambda example: len(example.ids), reverse=True)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
