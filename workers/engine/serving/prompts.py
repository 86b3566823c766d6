"""Turns a chat into the token ids that an answer follows. The chat template runs in a child process."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from workers.contract.errors import DataError, ModelError
from workers.engine.limited_process import LimitedProcess, LimitExceeded
from workers.engine.training.chat_templates import (
    MAX_RENDERED_CHARACTERS,
    RENDER_BYTES,
    RENDER_SECONDS,
    SECONDS_PER_MESSAGE,
    ChatTemplate,
    Message,
    describe_failure,
)
from workers.engine.training.encoding import Ids, TokenRules


class PromptEncoder:
    """Encodes chats with one tokenizer. A context manager, because templates run in a child process."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.rules = TokenRules(tokenizer)
        self.renderer = LimitedProcess(lambda messages: _render(tokenizer, messages), RENDER_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.renderer.close()

    def start(self) -> None:
        """Start the child process while this one is small and has no threads."""
        if self.tokenizer.chat_template is not None:
            self.renderer.ask([{"role": "user", "content": "Hello"}], RENDER_SECONDS)

    def encode(self, messages: list[Message]) -> Ids:
        """Return the token ids of a prompt [tokens].

        Raises DataError for messages that the chat template refuses, and ModelError if it fails.
        """
        if self.tokenizer.chat_template is not None:
            text = self._rendered(messages)
            ids = self.rules.tokenize([text])[text]
        else:
            ids = self._plain(messages)
        return np.array(ids, dtype=np.int32)

    def _rendered(self, messages: list[Message]) -> str:
        try:
            reply = self.renderer.ask(messages, RENDER_SECONDS + SECONDS_PER_MESSAGE * len(messages))
        except LimitExceeded as error:
            # The next request gets a new child.
            self.renderer.close()
            raise ModelError("The base model's chat template takes too long for these messages.") from error
        if "refused" in reply:
            raise DataError(f"The messages do not fit the base model's chat template: {reply['refused']}.")
        if "failed" in reply:
            raise ModelError(f"The base model's chat template does not work: {reply['failed']}.")
        return str(reply["text"])

    def _plain(self, messages: list[Message]) -> list[int]:
        """Return the prompt of a model without chat template, as training encodes its rows."""
        ids = [*self.rules.bos]
        for message in messages:
            is_answer = message["role"] == "assistant"
            text = message["content"] if is_answer else message["content"] + "\n"
            ids += self.rules.tokenize([text])[text] + (self.rules.end if is_answer else [])
        return ids


def _render(tokenizer: Any, messages: list[Message]) -> dict[str, str]:
    """Return the rendered prompt, or the reason why there is none."""
    try:
        text = ChatTemplate.prompt(tokenizer, messages)
    except MemoryError:
        raise
    except Exception as error:
        return describe_failure(error)
    if len(text) > MAX_RENDERED_CHARACTERS:
        return {"failed": f"it writes more than {MAX_RENDERED_CHARACTERS:,} characters"}
    return {"text": text}
