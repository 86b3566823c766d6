"""Renders chats with a base model's chat template, and finds each learned answer in the text.

An answer is what the template adds to the messages before it. Rendering every beginning of a chat would take
time that grows with the square of its turns, so a long chat is rendered turn by turn. A chat template is
somebody else's program: it runs in a child process with limits. Knows no tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from workers.contract.errors import DataError, ModelError
from workers.engine.limited_process import TIME, LimitedProcess, LimitExceeded

Message = dict[str, Any]
# Up to so many characters, every beginning of a chat is rendered.
SHORT_CHARACTERS = 100_000
# The same for a chat whose turns depend on each other, before only its last answer is learned.
MAX_CHARACTERS = 1_000_000
CHARACTERS_PER_MESSAGE = 32  # what a template adds, roughly
# The messages up to the first answer stand before each turn that is rendered alone.
MAX_FIRST_MESSAGES, FIRST_MESSAGE_CHARACTERS = 8, 200
TURNS_PER_BATCH = 256
# Limits of the template for one row: processor time, growth of memory, and characters that it may write.
RENDER_SECONDS, SECONDS_PER_MESSAGE = 2.0, 0.0004
RENDER_BYTES = 512_000_000
MAX_RENDERED_CHARACTERS = 8_000_000


@dataclass(frozen=True)
class RenderedChat:
    """A chat as text, with its learned answers in one of two forms.

    `spans`: (start, end) of each in `text`, where both `text[:start]` and `text[:end]` are what the template
    makes of the messages so far. `pairs`: (text before, text with the answer) of each; they need not be
    beginnings of `text`. `last`: the pair of the last answer, learned or not. `is_complete` is False if the
    pairs leave out earlier answers.
    """

    text: str
    last: tuple[str, str] | None = None
    spans: list[tuple[int, int]] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    is_complete: bool = True


class ChatRenderer(LimitedProcess):
    """Renders the chats of one tokenizer in a child process. A context manager."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(lambda messages: _answer(tokenizer, messages), RENDER_BYTES)

    def render(self, number: int, messages: Sequence[Message]) -> RenderedChat:
        """Render the chat of row `number`.

        Raises DataError if the template refuses the row, and ModelError if it fails or exceeds its limits.
        """
        seconds = RENDER_SECONDS + SECONDS_PER_MESSAGE * len(messages)
        try:
            reply = self.ask(messages, seconds)
        except LimitExceeded as error:
            limit = f"{seconds:.3g} s" if error.limit == TIME else f"{RENDER_BYTES / 1e6:.0f} MB of memory"
            raise ModelError(
                f"The base model's chat template needs more than {limit} for row {number}. Choose another "
                "base model."
            ) from error
        if refused := reply.get("refused"):
            raise DataError(
                f"Row {number} does not fit the base model's chat template: {refused}. Change the roles "
                "in this row, or choose another base model."
            )
        if failed := reply.get("failed"):
            raise ModelError(
                f"The base model's chat template does not work for row {number}: {failed}. Choose another "
                "base model."
            )
        last = reply["last"] and tuple(reply["last"])
        spans, pairs = ([tuple(item) for item in reply[name]] for name in ("spans", "pairs"))
        return RenderedChat(reply["text"], last, spans, pairs, reply["is_complete"])


def describe_failure(error: Exception) -> dict[str, str]:
    """Return why a template wrote nothing: `refused` by its own words, or `failed` in any other way."""
    from jinja2.exceptions import TemplateError, TemplateSyntaxError

    if isinstance(error, TemplateSyntaxError):
        return {"failed": str(error)[:200]}
    if isinstance(error, TemplateError):
        return {"refused": str(error)[:200]}
    # The template may raise whatever Python can: it divides by zero, recurses, or imports.
    return {"failed": f"{type(error).__name__}, {error}"[:200]}


def _answer(tokenizer: Any, messages: list[Message]) -> dict[str, Any]:
    """Return the rendered chat as JSON values, or the reason why there is none."""
    try:
        chat = render_chat(tokenizer, messages)
    except MemoryError:
        raise
    except Exception as error:
        return describe_failure(error)
    texts = (chat.text, *(chat.last or ()), *(text for pair in chat.pairs for text in pair))
    if sum(map(len, texts)) > MAX_RENDERED_CHARACTERS:
        return {"failed": f"it writes more than {MAX_RENDERED_CHARACTERS:,} characters"}
    return dataclasses.asdict(chat)


def render_chat(tokenizer: Any, messages: Sequence[Message]) -> RenderedChat:
    """Render a chat. Raises jinja2's TemplateError if the template refuses it."""
    chat = ChatTemplate(tokenizer, [{"role": item["role"], "content": item["content"]} for item in messages])
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        return RenderedChat(chat.text)
    last = chat.pair(answers[-1])
    learned = [place for place in answers if messages[place].get("weight", 1) != 0]
    sizes = list(accumulate(len(item["content"]) + CHARACTERS_PER_MESSAGE for item in messages))
    characters = 2 * sum(sizes[place] for place in answers)
    if characters > SHORT_CHARACTERS and (spans := chat.answer_spans(answers, last)):
        return RenderedChat(chat.text, last, spans=[spans[place] for place in learned])
    if characters <= MAX_CHARACTERS:
        return RenderedChat(chat.text, last, pairs=[chat.pair(place) for place in learned])
    pairs = [last] if answers[-1] in learned else []
    return RenderedChat(chat.text, last, pairs=pairs, is_complete=False)


class ChatTemplate:
    """The chat template of a tokenizer on one list of messages."""

    def __init__(self, tokenizer: Any, messages: list[Message]) -> None:
        self.tokenizer = tokenizer
        self.messages = messages
        self.text = self.render([messages])[0]

    def render(self, chats: list[list[Message]], *, with_prompt: bool = False) -> list[str]:
        """Return the text of each chat; `with_prompt` adds the start of an answer."""
        texts: list[str] = self.tokenizer.apply_chat_template(
            chats, tokenize=False, add_generation_prompt=with_prompt
        )
        return texts

    @classmethod
    def prompt(cls, tokenizer: Any, messages: list[Message]) -> str:
        """Return the text of a chat with the start of its next answer."""
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text

    def pair(self, place: int) -> tuple[str, str]:
        """Return the text before the answer at `place`, and with it."""
        before = self.render([self.messages[:place]], with_prompt=True)[0] if place else ""
        return before, self.render([self.messages[: place + 1]])[0]

    def answer_spans(self, answers: list[int], last: tuple[str, str]) -> dict[int, tuple[int, int]] | None:
        """Return place -> (start, end) of every answer in the text.

        Each turn is rendered alone, after a short form of the messages up to the first answer. None unless
        the turns, one after the other, make up the text.
        """
        from jinja2.exceptions import TemplateError

        if answers[0] >= MAX_FIRST_MESSAGES:
            return None
        spans, end = {}, 0
        try:
            for place, before, after in self._turns(answers):
                if not (after.startswith(before) and self.text.startswith(after, end)):
                    return None
                spans[place] = (end + len(before), end + len(after))
                end += len(after)
        except TemplateError:
            # A template may refuse a turn that follows other messages than its own.
            return None
        start, end = spans[answers[-1]]
        return spans if last == (self.text[:start], self.text[:end]) else None

    def _turns(self, answers: list[int]) -> Iterator[tuple[int, str, str]]:
        """Yield (place, text before the answer, text with it) of each turn, without the turns before it."""
        first = answers[0]
        yield first, *self.pair(first)
        head = [
            {**message, "content": message["content"][:FIRST_MESSAGE_CHARACTERS]}
            for message in self.messages[: first + 1]
        ]
        start = self.render([head])[0]
        turns = list(pairwise(answers))
        for number in range(0, len(turns), TURNS_PER_BATCH):
            batch = turns[number : number + TURNS_PER_BATCH]
            chats = [head + self.messages[before + 1 : place + 1] for before, place in batch]
            prompts = self.render([chat[:-1] for chat in chats], with_prompt=True)
            for (_, place), before, after in zip(batch, prompts, self.render(chats), strict=True):
                # Without the start, nothing is left that could be found in the text.
                yield place, before.removeprefix(start), after.removeprefix(start)
