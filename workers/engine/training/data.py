"""Encodes canonical rows as token ids and loss masks, orders them for a run, and collates batches.

Chat templates are rendered only here, in the engine's own process. Knows nothing of models or the loop.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.contract.errors import DataError
from workers.contract.events import Progress, Report, ShouldStop
from workers.contract.specs import DataSpec
from workers.engine.importing.split_files import SCHEMA, rows_sha256
from workers.engine.training.runtime import stop_if_asked

Ids = np.ndarray[Any, np.dtype[np.int32]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
ROWS_PER_BATCH = 256
# With a shorter prefix, the second forward pass costs more than it saves.
SHORTEST_PREFIX = 8


@dataclass(frozen=True)
class CanonicalRow:
    """One canonical row: `messages`, or `text`."""

    number: int
    messages: list[dict[str, Any]] | None
    text: str | None


class Split:
    """The rows of one split. JSON is parsed only for the rows that are read."""

    def __init__(self, data: DataSpec, split: str) -> None:
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(Path(data.path) / f"{split}.parquet") as file:
                self._table = file.read(columns=SCHEMA.names)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"The {split} rows of this dataset cannot be read. Import the file again."
            ) from error

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

    @functools.cached_property
    def sha256(self) -> str:
        """The checksum of the rows, which the import froze for the test split."""
        return rows_sha256(self._table)


@dataclass(frozen=True)
class Example:
    """One row as token ids [tokens]; `loss_mask` [tokens] is True where a token is a training target.

    `prompt_length`: tokens before the last answer, 0 for plain text. `template_is_stable`: False if the chat
    template renders earlier answers differently once more turns follow, so that only the last one is learned.
    """

    row: int
    ids: Ids
    loss_mask: Flags
    prompt_length: int = 0
    prompt: str = ""
    answer: str = ""
    template_is_stable: bool = True

    @property
    def target_count(self) -> int:
        return int(self.loss_mask.sum())

    def truncate(self, max_length: int) -> Example:
        """Keep the first `max_length` tokens."""
        if len(self.ids) <= max_length:
            return self
        return self._part(slice(0, max_length), self.prompt_length)

    def truncate_left(self, max_length: int) -> Example:
        """Keep the last `max_length` tokens, and so the answer."""
        gone = len(self.ids) - max_length
        return self if gone <= 0 else self._part(slice(gone, None), max(0, self.prompt_length - gone))

    def _part(self, part: slice, prompt_length: int) -> Example:
        learn = self.loss_mask[part].copy()
        learn[:1] = False
        return Example(
            self.row, self.ids[part], learn, prompt_length, self.prompt, self.answer, self.template_is_stable
        )


def encode_rows(
    tokenizer: Any, split: Split, positions: Sequence[int], *, report: Report, should_stop: ShouldStop
) -> dict[int, Example]:
    """Return position in the split -> untruncated example."""
    done: dict[int, Example] = {}
    for start in range(0, len(positions), ROWS_PER_BATCH):
        stop_if_asked(should_stop)
        report(Progress("tokenizing", start, len(positions)))
        part = positions[start : start + ROWS_PER_BATCH]
        done.update(zip(part, encode(tokenizer, [split.row(index) for index in part]), strict=True))
    report(Progress("tokenizing", len(positions), len(positions)))
    return done


def encode(tokenizer: Any, rows: Sequence[CanonicalRow]) -> list[Example]:
    """Encode rows. Each distinct text is tokenized once."""
    plans = [_plan(tokenizer, row) for row in rows]
    texts = sorted({text for plan in plans for text in plan.texts()})
    tokens = dict(zip(texts, _tokenize(tokenizer, texts), strict=True))
    return [plan.example(tokenizer, tokens) for plan in plans]


def _tokenize(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return ids


def _bos(tokenizer: Any) -> list[int]:
    """Return the start token if this tokenizer puts one before plain text."""
    first = tokenizer("")["input_ids"][:1]
    return first if first and first[0] == tokenizer.bos_token_id else []


@dataclass(frozen=True)
class PlainTextPlan:
    """A row to encode without a chat template, as pieces of text; answers end with the end token."""

    row: CanonicalRow
    pieces: list[tuple[str, bool, bool]]  # text, learned, ends with eos

    def texts(self) -> Iterator[str]:
        return (text for text, _learned, _ends in self.pieces)

    def example(self, tokenizer: Any, tokens: dict[str, list[int]]) -> Example:
        ids = _bos(tokenizer)
        learn, prompt_length = [False] * len(ids), 0
        for text, learned, ends in self.pieces:
            end = [tokenizer.eos_token_id] if ends and tokenizer.eos_token_id is not None else []
            if ends:
                prompt_length = len(ids)
            ids = ids + tokens[text] + end
            learn += [learned] * (len(ids) - len(learn))
        return _example(self.row, ids, learn, 0 if self.row.messages is None else prompt_length)


@dataclass(frozen=True)
class ChatTemplatePlan:
    """A chat to encode with the chat template: (text before, text with the answer) for each learned turn."""

    row: CanonicalRow
    whole: str
    turns: list[tuple[str, str]]
    last: tuple[str, str] | None

    def texts(self) -> Iterator[str]:
        yield self.whole
        for pair in (*self.turns, *([self.last] if self.last else [])):
            yield from pair

    def example(self, tokenizer: Any, tokens: dict[str, list[int]]) -> Example:
        ids = tokens[self.whole]
        spans = [(tokens[before], tokens[after]) for before, after in self.turns]
        stable = all(_starts(ids, after) and _starts(after, before) for before, after in spans)
        if not stable:
            # Only the last answer is certain to render the same alone and within the whole chat.
            spans = spans[-1:] if self.last is not None and self.turns[-1] == self.last else []
        learn = [False] * len(ids)
        for before, after in spans:
            start, stop = _common(before, ids), _end_of_turn(tokenizer, ids, min(len(after), len(ids)))
            learn[start:stop] = [True] * (stop - start)
        prompt_length = _common(tokens[self.last[0]], ids) if self.last else 0
        closes = learn[-1:] == [True] and ids[-1] not in tokenizer.all_special_ids
        if closes and tokenizer.eos_token_id is not None:
            # Without an end token the model would learn never to stop.
            ids, learn = [*ids, tokenizer.eos_token_id], [*learn, True]
        return _example(self.row, ids, learn, prompt_length, stable=stable)


def _starts(whole: list[int], part: list[int]) -> bool:
    return whole[: len(part)] == part


def _common(left: list[int], right: list[int]) -> int:
    """Return how many tokens both lists begin with."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))


def _end_of_turn(tokenizer: Any, ids: list[int], stop: int) -> int:
    """Return the end of the turn without white space after its end token, where generation stops."""
    end = stop
    while end > 0 and ids[end - 1] not in tokenizer.all_special_ids:
        if tokenizer.decode(ids[end - 1 : end]).strip():
            return stop
        end -= 1
    return end or stop


def _plan(tokenizer: Any, row: CanonicalRow) -> PlainTextPlan | ChatTemplatePlan:
    if row.messages is None:
        return PlainTextPlan(row, [(row.text or "", True, True)])
    if tokenizer.chat_template is None:
        return PlainTextPlan(row, list(_pieces(row.messages)))
    answers = [place for place, message in enumerate(row.messages) if message["role"] == "assistant"]
    pairs = {place: _pair(tokenizer, row, place) for place in answers}
    learned = [pairs[place] for place in answers if row.messages[place].get("weight", 1) != 0]
    return ChatTemplatePlan(
        row, _render(tokenizer, row, len(row.messages)), learned, pairs[answers[-1]] if answers else None
    )


def _pieces(messages: list[dict[str, Any]]) -> Iterator[tuple[str, bool, bool]]:
    for message in messages:
        if message["role"] == "assistant":
            yield message["content"], message.get("weight", 1) != 0, True
        else:
            yield message["content"] + "\n", False, False


def _pair(tokenizer: Any, row: CanonicalRow, place: int) -> tuple[str, str]:
    before = _render(tokenizer, row, place, add_generation_prompt=True) if place else ""
    return before, _render(tokenizer, row, place + 1)


def _render(tokenizer: Any, row: CanonicalRow, count: int, *, add_generation_prompt: bool = False) -> str:
    """Render the first `count` messages; `add_generation_prompt` adds the start of the answer."""
    from jinja2.exceptions import TemplateError

    messages = [{"role": item["role"], "content": item["content"]} for item in (row.messages or [])[:count]]
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise DataError(
            f"Row {row.number} does not fit the base model's chat template: {str(error)[:200]}. "
            "Change the roles in this row, or choose another base model."
        ) from error
    return text


def _example(
    row: CanonicalRow, ids: list[int], learn: list[bool], prompt_length: int, *, stable: bool = True
) -> Example:
    flags = np.array(learn, dtype=np.bool_)
    flags[:1] = False  # no token precedes the first one, so it cannot be predicted
    prompt, answer = _prompt_and_answer(row)
    return Example(row.number, np.array(ids, dtype=np.int32), flags, prompt_length, prompt, answer, stable)


def _prompt_and_answer(row: CanonicalRow) -> tuple[str, str]:
    """Return (prompt, last answer) as plain text without the system message."""
    messages = row.messages or []
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        return "", row.text or ""
    asked = [item["content"] for item in messages[: answers[-1]] if item["role"] in ("user", "assistant")]
    return "\n\n".join(asked), messages[answers[-1]]["content"]


# Order


@functools.lru_cache(maxsize=16)
def epoch_order(count: int, seed: int, epoch: int) -> Ids:
    """Return a permutation of range(count). It depends on the arguments only, so any step can resume."""
    return np.random.default_rng([seed, epoch]).permutation(count).astype(np.int32)


def step_rows(count: int, rows_per_step: int, seed: int, step: int) -> list[int]:
    """Return the rows of optimizer step `step` (from 1). The last step of an epoch may be short."""
    epoch, place = divmod(step - 1, math.ceil(count / rows_per_step))
    order = epoch_order(count, seed, epoch)
    return [int(index) for index in order[place * rows_per_step : (place + 1) * rows_per_step]]


# Batches


@dataclass(frozen=True)
class Batch:
    """The input of one forward pass.

    `prefix` [1, p]: tokens that every row begins with; p may be 0. `input_ids` [rows, longest]: the rest,
    padded on the right. `target_positions` [n]: flat positions in `input_ids` whose next token is a target.
    `targets` [n]: those tokens. `tokens`: number of tokens without padding.
    """

    prefix: Tensor
    input_ids: Tensor
    target_positions: Tensor
    targets: Tensor
    tokens: int


def collate(examples: Sequence[Example], device: torch.device, *, share_prefix: bool = False) -> Batch:
    """Pad rows to one batch, masked by length: in many models the end-of-turn token is also the pad token."""
    prefix = shared_prefix(examples) if share_prefix else 0
    longest = max(len(example.ids) for example in examples) - prefix
    ids = np.zeros((len(examples), longest), dtype=np.int64)
    learn = np.zeros((len(examples), longest), dtype=np.bool_)
    for place, example in enumerate(examples):
        ids[place, : len(example.ids) - prefix] = example.ids[prefix:]
        learn[place, : len(example.ids) - prefix] = example.loss_mask[prefix:]
    rows, columns = learn.nonzero()
    return Batch(
        torch.from_numpy(examples[0].ids[None, :prefix].astype(np.int64)).to(device),
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


def micro_batches(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """Batch rows of similar length to pad little, the longest first: later batches reuse the memory."""
    ordered = sorted(examples, key=lambda example: len(example.ids), reverse=True)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
