"""Chats between the web process and the inference engine: one connection to a Unix socket is one request.

The web process writes one line, a ChatRequest or HAND_OVER. The engine answers with lines: Accepted, then
Text until End, or Refused at any place. Closing the connection cancels the request. Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import get_args

ROLES = ("system", "user", "assistant")
MAX_LINE = 4 * 1024 * 1024  # of a request
# Of an answer's line; a web process holds twice as much of an answer that nobody reads.
MAX_EVENT = 256 * 1024
# Asks an inference job to end soon if nobody uses it, because another base model waits for its worker.
HAND_OVER = b'{"hand_over": true}\n'
MAX_STOPS, MAX_STOP_CHARACTERS = 4, 200
# Letters of the hash that names an adapter's folder.
_FOLDER = re.compile("[0-9a-f]{64}")
# An answer is cancelled once so much of it waits in the engine for a slow reader.
MAX_UNREAD_BYTES = 256 * 1024


class ChatError(ValueError):
    """A chat that cannot be answered as it is. `field` names the part at fault."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field, self.message = field, message


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """The settings of an answer: temperature 0 takes the likeliest token; `stop` are texts that end it."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= 100_000:
            raise ChatError("max_tokens", "The length must lie between 1 and 100,000 tokens.")
        if not 0 <= self.temperature <= 2:
            raise ChatError("temperature", "The temperature must lie between 0 and 2.")
        if not 0 < self.top_p <= 1:
            raise ChatError("top_p", "top_p must be above 0 and at most 1.")
        if not 0 <= self.seed < 2**63:
            raise ChatError("seed", "The seed must be a whole number from 0.")
        if len(self.stop) > MAX_STOPS or any(not 1 <= len(text) <= MAX_STOP_CHARACTERS for text in self.stop):
            raise ChatError("stop", "Send at most 4 stop texts of 1 to 200 characters.")


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """Messages for the base model, or for the adapter in the folder of this name (its content's hash)."""

    messages: list[dict[str, str]]
    settings: ChatSettings
    adapter: str = ""

    def __post_init__(self) -> None:
        if self.adapter and not _FOLDER.fullmatch(self.adapter):
            raise ChatError("adapter", "An adapter is named by the hash of its content.")
        if not self.messages:
            raise ChatError("messages", "Send at least one message.")
        for message in self.messages:
            if set(message) != {"role", "content"} or message["role"] not in ROLES:
                raise ChatError("messages", "A message has a role (system, user or assistant) and a content.")
            if not isinstance(message["content"], str):
                raise ChatError("messages", "The content of a message must be a text.")

    def to_line(self) -> bytes:
        """Return the request as one line."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> ChatRequest:
        """Parse a request. Raises ChatError."""
        try:
            values = json.loads(line)
            settings = values.pop("settings")
            settings["stop"] = tuple(settings["stop"])
            return cls(settings=ChatSettings(**settings), **values)
        except ChatError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ChatError("", "The request cannot be read.") from error


@dataclass(frozen=True)
class Accepted:
    """The request waits for its turn or is being answered."""

    prompt_tokens: int


@dataclass(frozen=True)
class Text:
    """The next part of the answer, and the tokens of the whole answer so far."""

    text: str
    tokens: int


@dataclass(frozen=True)
class End:
    """The end of an answer. `reason`: `stop`, or `length` at the limit of tokens."""

    reason: str
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True)
class Refused:
    """The end without a whole answer.

    `code`: busy, stopping, too_long, bad_messages, adapter_missing, slow_reader, internal_error. `message` is
    for people.
    """

    code: str
    message: str


ChatEvent = Accepted | Text | End | Refused
_EVENTS: dict[str, type] = {kind.__name__: kind for kind in get_args(ChatEvent)}


def to_line(event: ChatEvent) -> bytes:
    """Return the event as one line."""
    return json.dumps({"event": type(event).__name__, **dataclasses.asdict(event)}).encode() + b"\n"


def from_line(line: bytes) -> ChatEvent:
    """Parse an event of the engine. Raises ValueError for a line that is cut off or unknown."""
    try:
        values = json.loads(line)
        event: ChatEvent = _EVENTS[values.pop("event")](**values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not an event") from error
    return event
