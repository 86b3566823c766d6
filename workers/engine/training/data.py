"""Canonical rows to token ids and labels, and the order in which a run sees them.

Chat templates render only here, in the engine's own process. Knows nothing of models or of the loop.
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
ROWS_AT_ONCE = 256
# Below this a second pass through the model costs more than it saves.
SHORTEST_PREFIX = 8


@dataclass(frozen=True)
class CanonicalRow:
    """One canonical row: `messages`, or `text`."""

    number: int
    messages: list[dict[str, Any]] | None
    text: str | None


class Split:
    """The rows of one split; JSON is read only for the rows that are asked for."""

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
        """Row `index` of the split, from 0."""
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
        """The checksum of its rows, as the import has frozen it for the test rows."""
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
        """The first `max_length` tokens."""
        if len(self.ids) <= max_length:
            return self
        return self._part(slice(0, max_length), self.prompt_length)

    def truncate_left(self, max_length: int) -> Example:
        """The last `max_length` tokens: the answer stays."""
        gone = len(self.ids) - max_length
        return self if gone <= 0 else self._part(slice(gone, None), max(0, self.prompt_length - gone))

    def _part(self, part: slice, prompt_length: int) -> Example:
        learn = self.loss_mask[part].copy()
        learn[:1] = False
        return Example(
            self.row, self.ids[part], learn, prompt_length, self.prompt, self.answer, self.template_is_stable
        )


def encode_rows(
    tokenizer: Any, split: Split, wanted: Sequence[int], *, report: Report, should_stop: ShouldStop
) -> dict[int, Example]:
    """Examples of the wanted rows (positions in the split), uncut."""
    done: dict[int, Example] = {}
    for start in range(0, len(wanted), ROWS_AT_ONCE):
        stop_if_asked(should_stop)
        report(Progress("tokenizing", start, len(wanted)))
        part = wanted[start : start + ROWS_AT_ONCE]
        done.update(zip(part, encode(tokenizer, [split.row(index) for index in part]), strict=True))
    report(Progress("tokenizing", len(wanted), len(wanted)))
    return done


def encode(tokenizer: Any, rows: Sequence[CanonicalRow]) -> list[Example]:
    """Token ids and labels of some rows. Each distinct text is tokenized once."""
    plans = [_plan(tokenizer, row) for row in rows]
    texts = sorted({text for plan in plans for text in plan.texts()})
    tokens = dict(zip(texts, _tokenize(tokenizer, texts), strict=True))
    return [plan.example(tokenizer, tokens) for plan in plans]


def _tokenize(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return ids


def _bos(tokenizer: Any) -> list[int]:
    """The start token where this tokenizer puts one before plain text."""
    first = tokenizer("")["input_ids"][:1]
    return first if first and first[0] == tokenizer.bos_token_id else []


@dataclass(frozen=True)
class PlainPlan:
    """A row without a template: pieces joined as they are, each learned or not, `answers` end with eos."""

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
class ChatPlan:
    """A chat and its template: `turns` are (text before, text with the answer) per learned turn."""

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
            # Only the last answer surely reads the same alone and inside the whole chat.
            spans = spans[-1:] if self.last is not None and self.turns[-1] == self.last else []
        learn = [False] * len(ids)
        for before, after in spans:
            start, stop = _common(before, ids), _end_of_turn(tokenizer, ids, min(len(after), len(ids)))
            learn[start:stop] = [True] * (stop - start)
        prompt_length = _common(tokens[self.last[0]], ids) if self.last else 0
        closes = learn[-1:] == [True] and ids[-1] not in tokenizer.all_special_ids
        if closes and tokenizer.eos_token_id is not None:
            # A template without an end mark would teach the model never to stop.
            ids, learn = [*ids, tokenizer.eos_token_id], [*learn, True]
        return _example(self.row, ids, learn, prompt_length, stable=stable)


def _starts(whole: list[int], part: list[int]) -> bool:
    return whole[: len(part)] == part


def _common(left: list[int], right: list[int]) -> int:
    """How many tokens both begin with."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))


def _end_of_turn(tokenizer: Any, ids: list[int], stop: int) -> int:
    """Leave out white space after the end mark: generation stops before it, so it is nothing to learn."""
    end = stop
    while end > 0 and ids[end - 1] not in tokenizer.all_special_ids:
        if tokenizer.decode(ids[end - 1 : end]).strip():
            return stop
        end -= 1
    return end or stop


def _plan(tokenizer: Any, row: CanonicalRow) -> PlainPlan | ChatPlan:
    if row.messages is None:
        return PlainPlan(row, [(row.text or "", True, True)])
    if tokenizer.chat_template is None:
        return PlainPlan(row, list(_pieces(row.messages)))
    answers = [place for place, message in enumerate(row.messages) if message["role"] == "assistant"]
    pairs = {place: _pair(tokenizer, row, place) for place in answers}
    learned = [pairs[place] for place in answers if row.messages[place].get("weight", 1) != 0]
    return ChatPlan(
        row, _render(tokenizer, row, len(row.messages)), learned, pairs[answers[-1]] if answers else None
    )


def _pieces(messages: list[dict[str, Any]]) -> Iterator[tuple[str, bool, bool]]:
    for message in messages:
        if message["role"] == "assistant":
            yield message["content"], message.get("weight", 1) != 0, True
        else:
            yield message["content"] + "\n", False, False


def _pair(tokenizer: Any, row: CanonicalRow, place: int) -> tuple[str, str]:
    before = _render(tokenizer, row, place, ask=True) if place else ""
    return before, _render(tokenizer, row, place + 1)


def _render(tokenizer: Any, row: CanonicalRow, count: int, *, ask: bool = False) -> str:
    """The first `count` messages through the template; `ask` adds the opening of the answer."""
    from jinja2.exceptions import TemplateError

    messages = [{"role": item["role"], "content": item["content"]} for item in (row.messages or [])[:count]]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
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
    flags[:1] = False  # nothing stands before the first token to predict it from
    prompt, answer = _words(row)
    return Example(row.number, np.array(ids, dtype=np.int32), flags, prompt_length, prompt, answer, stable)


def _words(row: CanonicalRow) -> tuple[str, str]:
    """(what was asked, the last answer) as people read them, without the system message."""
    messages = row.messages or []
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        return "", row.text or ""
    asked = [item["content"] for item in messages[: answers[-1]] if item["role"] in ("user", "assistant")]
    return "\n\n".join(asked), messages[answers[-1]]["content"]


# Order


@functools.lru_cache(maxsize=16)
def epoch_order(count: int, seed: int, epoch: int) -> Ids:
    """A shuffle of range(count) that depends on nothing else, so any step can be found again."""
    return np.random.default_rng([seed, epoch]).permutation(count).astype(np.int32)


def step_rows(count: int, rows_per_step: int, seed: int, step: int) -> list[int]:
    """The rows of optimizer step `step` (from 1). The last step of an epoch may be short."""
    epoch, place = divmod(step - 1, math.ceil(count / rows_per_step))
    order = epoch_order(count, seed, epoch)
    return [int(index) for index in order[place * rows_per_step : (place + 1) * rows_per_step]]


# Batches


@dataclass(frozen=True)
class Batch:
    """Rows as one model call takes them.

    `prefix` [1, p]: tokens with which every row begins, p may be 0. `input_ids` [rows, longest]: the rest,
    padded on the right. `target_positions` [n]: flat positions in `input_ids` whose next token is a target.
    `targets` [n]: those tokens. `tokens`: real ones of all rows, without padding.
    """

    prefix: Tensor
    input_ids: Tensor
    target_positions: Tensor
    targets: Tensor
    tokens: int


def collate(examples: Sequence[Example], device: torch.device, *, share_prefix: bool = False) -> Batch:
    """Padding is masked by length, never by id: on many models pad is the end-of-turn token."""
    begin = shared_prefix(examples) if share_prefix else 0
    longest = max(len(example.ids) for example in examples) - begin
    ids = np.zeros((len(examples), longest), dtype=np.int64)
    learn = np.zeros((len(examples), longest), dtype=np.bool_)
    for place, example in enumerate(examples):
        ids[place, : len(example.ids) - begin] = example.ids[begin:]
        learn[place, : len(example.ids) - begin] = example.loss_mask[begin:]
    rows, columns = learn.nonzero()
    return Batch(
        torch.from_numpy(examples[0].ids[None, :begin].astype(np.int64)).to(device),
        torch.from_numpy(ids).to(device),
        torch.from_numpy(rows * longest + columns - 1).to(device),
        torch.from_numpy(ids[rows, columns]).to(device),
        sum(len(example.ids) for example in examples),
    )


def shared_prefix(examples: Sequence[Example]) -> int:
    """How many tokens all rows begin with, ending before the first token that predicts a target."""
    first = examples[0].ids
    ends = [int(item.loss_mask.argmax()) - 1 if item.target_count else len(item.ids) - 1 for item in examples]
    limit = max(0, min(ends))
    for example in examples[1:]:
        differ = np.flatnonzero(first[:limit] != example.ids[:limit])
        limit = int(differ[0]) if len(differ) else limit
    return limit if len(examples) > 1 and limit >= SHORTEST_PREFIX else 0


def micro_batches(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """Rows of like length together, so that little is padded; the longest first.

    The shorter ones find room in the memory that the longest have left.
    """
    ordered = sorted(examples, key=lambda example: len(example.ids), reverse=True)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
