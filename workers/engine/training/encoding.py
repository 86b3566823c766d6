"""Encodes canonical rows as token ids and loss masks, in time that grows with their length.

Only answers are targets. Knows nothing of files, models or the loop.
"""

from __future__ import annotations

import bisect
import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any, Self

import numpy as np

from workers.contract.errors import DataError
from workers.engine.base_models.model import model_errors
from workers.engine.training.chat_templates import MAX_CHARACTERS, ChatRenderer, RenderedChat

Ids = np.ndarray[Any, np.dtype[np.int32]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
Tokens = dict[str, list[int]]  # text -> its token ids


@dataclass(frozen=True)
class CanonicalRow:
    """One canonical row: `messages`, or `text`."""

    number: int
    messages: list[dict[str, Any]] | None
    text: str | None

    @property
    def size(self) -> int:
        """Return the number of characters of all contents."""
        return len(self.text or "") + sum(len(message["content"]) for message in self.messages or [])


@dataclass(frozen=True)
class Example:
    """One row as token ids [tokens]; `loss_mask` [tokens] is True where a token is a training target.

    `prompt_length`: tokens before the last answer, 0 for plain text. `template_is_stable`: False if the chat
    template renders earlier answers differently once more turns follow, so that only the last one is learned.
    `system`: the system message ("" for none) if it and `prompt` alone lead to `answer`; None for other rows.
    """

    row: int
    ids: Ids
    loss_mask: Flags
    prompt_length: int = 0
    prompt: str = ""
    answer: str = ""
    template_is_stable: bool = True
    system: str | None = None

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
        return replace(self, ids=self.ids[part], loss_mask=learn, prompt_length=prompt_length)


def encode(tokenizer: Any, rows: Sequence[CanonicalRow]) -> list[Example]:
    """Encode rows, all at once."""
    with RowEncoder(tokenizer) as encoder:
        return encoder.encode(rows)


def check_chat_template(tokenizer: Any) -> None:
    """Raise ModelError if the chat template fails on a short chat, or exceeds its limits."""
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]
    # A template may want other roles than these.
    with contextlib.suppress(DataError):
        encode(tokenizer, [CanonicalRow(1, messages, None)])


class RowEncoder:
    """Encodes rows with one tokenizer. A context manager, because chats are rendered in a child process."""

    def __init__(self, tokenizer: Any) -> None:
        self.rules = TokenRules(tokenizer)
        self.renderer = ChatRenderer(tokenizer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.renderer.close()

    def encode(self, rows: Sequence[CanonicalRow]) -> list[Example]:
        """Encode rows. Each distinct text is tokenized once."""
        plans = [self._plan(row) for row in rows]
        tokens = self.rules.tokenize(sorted({text for plan in plans for text in plan.texts()}))
        return [plan.example(self.rules, tokens) for plan in plans]

    def _plan(self, row: CanonicalRow) -> PlainTextPlan | PairsPlan | SpansPlan:
        if row.messages is None:
            return PlainTextPlan(row, [(row.text or "", True, True)])
        if self.rules.tokenizer.chat_template is None:
            return PlainTextPlan(row, list(_pieces(row.messages)))
        chat = self.renderer.render(row.number, row.messages)
        if not chat.spans:
            return PairsPlan(row, chat)
        for at_lines in (False, True):
            plan = SpansPlan(row, chat, self.rules.cut(chat.text, at_lines=at_lines))
            if plan.is_linear():
                return plan
        return _as_pairs(row, chat)


class TokenRules:
    """A tokenizer with what encoding asks it again and again."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special_ids = frozenset(tokenizer.all_special_ids)
        first = tokenizer("")["input_ids"][:1]
        # The start token, if this tokenizer puts one before plain text.
        self.bos = first if first and first[0] == tokenizer.bos_token_id else []
        self.end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        added = [
            re.escape(token.content)
            for token in tokenizer.added_tokens_decoder.values()
            if token.content and not (token.lstrip or token.rstrip or token.single_word)
        ]
        self.cuts = "|".join(sorted(added, key=len, reverse=True))

    def tokenize(self, texts: list[str]) -> Tokens:
        with model_errors("The base model's tokenizer does not work for these rows"):
            ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return dict(zip(texts, ids, strict=True))

    def cut(self, text: str, *, at_lines: bool) -> list[int]:
        """Return where the text can be cut so that no token crosses: before special tokens, or at lines too.

        Whether a tokenizer keeps to it is checked on the tokens of each text.
        """
        patterns = [self.cuts] * bool(self.cuts) + [r"(?<=\w)(?=\n)"] * at_lines
        matches = re.finditer("|".join(patterns), text) if patterns else ()
        return [0, *(match.start() for match in matches if match.start() > 0)]

    def end_of_turn(self, ids: list[int], stop: int) -> int:
        """Return the end of the turn without white space after its end token, where generation stops."""
        end = stop
        while end > 0 and ids[end - 1] not in self.special_ids:
            if self.tokenizer.decode(ids[end - 1 : end]).strip():
                return stop
            end -= 1
        return end or stop


@dataclass(frozen=True)
class PlainTextPlan:
    """A row to encode without a chat template, as pieces of text; answers end with the end token."""

    row: CanonicalRow
    pieces: list[tuple[str, bool, bool]]  # text, learned, ends with eos

    def texts(self) -> Iterator[str]:
        return (text for text, _learned, _ends in self.pieces)

    def example(self, rules: TokenRules, tokens: Tokens) -> Example:
        ids = [*rules.bos]
        learn, prompt_length = [False] * len(ids), 0
        for text, learned, ends in self.pieces:
            if ends:
                prompt_length = len(ids)
            ids += tokens[text] + (rules.end if ends else [])
            learn += [learned] * (len(ids) - len(learn))
        return _example(self.row, ids, learn, 0 if self.row.messages is None else prompt_length)


@dataclass(frozen=True)
class PairsPlan:
    """A chat to encode with the chat template, whose answers are pairs of texts."""

    row: CanonicalRow
    chat: RenderedChat

    def texts(self) -> Iterator[str]:
        yield self.chat.text
        yield from chain(self.chat.last or (), *self.chat.pairs)

    def example(self, rules: TokenRules, tokens: Tokens) -> Example:
        ids, last = tokens[self.chat.text], self.chat.last
        spans = [(tokens[before], tokens[after]) for before, after in self.chat.pairs]
        stable = self.chat.is_complete and all(
            _starts(ids, after) and _starts(after, before) for before, after in spans
        )
        if not stable:
            # Only the last answer is certain to render the same alone and within the whole chat.
            spans = spans[-1:] if last and self.chat.pairs[-1:] == [last] else []
        ends = [(_common(before, ids), min(len(after), len(ids))) for before, after in spans]
        return _chat_example(rules, self.row, ids, ends, _prompt_length(self.chat, tokens), stable=stable)


@dataclass(frozen=True)
class SpansPlan:
    """A chat to encode with the chat template, whose answers are spans of its text.

    `cuts`: positions in the text that no token crosses. The beginning of the text up to an answer is
    tokenized from the cut before it, so that the time grows with the text and not with its square.
    """

    row: CanonicalRow
    chat: RenderedChat
    cuts: list[int]

    def pieces(self) -> list[str]:
        ends = [*self.cuts[1:], len(self.chat.text)]
        return [self.chat.text[start:end] for start, end in zip(self.cuts, ends, strict=True)]

    def parts(self) -> list[tuple[int, str]]:
        """Return (number of the piece, the piece up to there) of every start and end of an answer."""
        positions = list(chain.from_iterable(self.chat.spans))
        numbers = [bisect.bisect_right(self.cuts, position) - 1 for position in positions]
        return [
            (number, self.chat.text[self.cuts[number] : position])
            for number, position in zip(numbers, positions, strict=True)
        ]

    def is_linear(self) -> bool:
        return sum(len(part) for _, part in self.parts()) <= 4 * len(self.chat.text)

    def texts(self) -> Iterator[str]:
        yield self.chat.text
        yield from chain(self.chat.last or (), self.pieces(), (part for _, part in self.parts()))

    def example(self, rules: TokenRules, tokens: Tokens) -> Example:
        ids, pieces = tokens[self.chat.text], [tokens[piece] for piece in self.pieces()]
        counts = [0, *accumulate(len(piece) for piece in pieces)]
        parts = [(counts[number], tokens[part]) for number, part in self.parts()]
        if ids != list(chain.from_iterable(pieces)) or any(
            ids[start : start + len(part)] != part for start, part in parts
        ):
            plan = _as_pairs(self.row, self.chat)
            return plan.example(rules, tokens | rules.tokenize(sorted(set(plan.texts()) - tokens.keys())))
        ends = [start + len(part) for start, part in parts]
        spans = list(zip(ends[::2], ends[1::2], strict=True))
        return _chat_example(rules, self.row, ids, spans, _prompt_length(self.chat, tokens))


def _as_pairs(row: CanonicalRow, chat: RenderedChat) -> PairsPlan:
    """Return the plan that tokenizes the text up to every answer, if that is not too much text."""
    is_complete = sum(map(sum, chat.spans)) <= MAX_CHARACTERS
    pairs = [(chat.text[:start], chat.text[:end]) for start, end in chat.spans[0 if is_complete else -1 :]]
    return PairsPlan(row, RenderedChat(chat.text, chat.last, pairs=pairs, is_complete=is_complete))


def _pieces(messages: list[dict[str, Any]]) -> Iterator[tuple[str, bool, bool]]:
    for message in messages:
        if message["role"] == "assistant":
            yield message["content"], message.get("weight", 1) != 0, True
        else:
            yield message["content"] + "\n", False, False


def _starts(whole: list[int], part: list[int]) -> bool:
    return whole[: len(part)] == part


def _common(left: list[int], right: list[int]) -> int:
    """Return how many tokens both lists begin with."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))


def _prompt_length(chat: RenderedChat, tokens: Tokens) -> int:
    return _common(tokens[chat.last[0]], tokens[chat.text]) if chat.last else 0


def _chat_example(
    rules: TokenRules,
    row: CanonicalRow,
    ids: list[int],
    spans: list[tuple[int, int]],
    prompt_length: int,
    *,
    stable: bool = True,
) -> Example:
    """Return the example of a chat; `spans` are the (start, end) of its answers in tokens."""
    learn = [False] * len(ids)
    for start, end in spans:
        stop = rules.end_of_turn(ids, end)
        learn[start:stop] = [True] * (stop - start)
    if learn[-1:] == [True] and ids[-1] not in rules.special_ids:
        # Without an end token the model would learn never to stop.
        ids, learn = [*ids, *rules.end], learn + [True] * len(rules.end)
    return _example(row, ids, learn, prompt_length, stable=stable)


def _example(
    row: CanonicalRow, ids: list[int], learn: list[bool], prompt_length: int, *, stable: bool = True
) -> Example:
    flags = np.array(learn, dtype=np.bool_)
    flags[:1] = False  # no token precedes the first one, so it cannot be predicted
    prompt, answer = _prompt_and_answer(row)
    array = np.array(ids, dtype=np.int32)
    return Example(row.number, array, flags, prompt_length, prompt, answer, stable, _single_turn_system(row))


def _prompt_and_answer(row: CanonicalRow) -> tuple[str, str]:
    """Return (prompt, last answer) as plain text without the system message."""
    messages = row.messages or []
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        return "", row.text or ""
    prompts = [item["content"] for item in messages[: answers[-1]] if item["role"] in ("user", "assistant")]
    return "\n\n".join(prompts), messages[answers[-1]]["content"]


def _single_turn_system(row: CanonicalRow) -> str | None:
    """Return the system message, or "", of a row with one user turn and its answer; None for other rows."""
    match row.messages or []:
        case [{"role": "user"}, {"role": "assistant"}]:
            return ""
        case [{"role": "system", "content": str(system)}, {"role": "user"}, {"role": "assistant"}]:
            return system
    return None
