"""Chat completions: a translation of messages and settings for the chat relay, and of its answer."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from django.http import HttpResponseBase, JsonResponse
from django.utils.translation import gettext as _
from ninja import Router, Schema
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    create_model,
)

from dashboard.api.access import Call
from dashboard.api.openai.models import find
from dashboard.api.refusals import Refusal, invalid, later
from dashboard.api.texts import storable
from dashboard.chat_relay import (
    RETRY_SECONDS,
    ChatBroken,
    ChatFailed,
    ChatInvalid,
    ChatModel,
    ChatUnavailable,
    ModelUnknown,
    stream_chat,
)
from dashboard.models import Adapter, ApiToken
from dashboard.openai_errors import error_object
from dashboard.streams import StreamResponse, release_connection, while_admitted
from workers.contract.chat import ChatError, ChatSettings, End, Text

router = Router()
DEFAULT_TOKENS = 512
ROLES = {"developer": "system"}
# Settings that are not supported, and the values of them that change nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "store": (False,),
    "tools": ([],),
    "tool_choice": (),
    "parallel_tool_calls": (),
    "functions": ([],),
    "function_call": (),
}
# Names of the caller's own customers, which no answer depends on.
WITHOUT_EFFECT = ("user", "safety_identifier", "prompt_cache_key")
# Fields of a message, which an answer of this API has without a value.
EMPTY = ("name", "refusal", "annotations", "audio", "tool_calls", "function_call")
Content = Annotated[StrictStr, BeforeValidator(lambda value: text_of(value)), AfterValidator(storable)]


def text_of(content: Any) -> Any:
    """Return the text of content parts. Raises ValueError for parts that are no text."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and set(part) == {"type", "text"} for part in content):
        raise ValueError(_("Parts of `content` must be texts: {type: text, text: …}."))
    if not all(part["type"] == "text" and isinstance(part["text"], str) for part in content):
        raise ValueError(_("Parts of `content` must be texts: {type: text, text: …}."))
    return "".join(part["text"] for part in content)


def optional(*names: str) -> Any:
    """Return a schema of fields with any value."""
    fields: dict[str, Any] = dict.fromkeys(names, (Any, None))
    return create_model("Optional", __base__=Schema, **fields)


class MessageIn(optional(*EMPTY)):  # type: ignore[misc]
    """A message; an answer of this API may be sent back as it came, with its empty fields."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class StreamOptionsIn(Schema):
    """Options of a stream: a last chunk that counts the tokens."""

    model_config = ConfigDict(extra="forbid")

    include_usage: StrictBool = False
    # Padding against side channels, which does not change the answer.
    include_obfuscation: StrictBool = False


class CompletionIn(optional(*UNSUPPORTED, *WITHOUT_EFFECT)):  # type: ignore[misc]
    """A chat. Settings that are not supported are refused unless they change nothing."""

    model_config = ConfigDict(extra="forbid")

    model: StrictStr
    messages: Annotated[list[MessageIn], Field(min_length=1)]
    max_completion_tokens: StrictInt | None = None
    max_tokens: StrictInt | None = None
    temperature: StrictFloat | None = None
    top_p: StrictFloat | None = None
    seed: StrictInt | None = None
    stop: Any = None
    stream: StrictBool | None = None
    stream_options: StreamOptionsIn | None = None

    def refuse_unsupported(self) -> None:
        """Refuse settings that would otherwise be ignored."""
        for name, same in UNSUPPORTED.items():
            refuse_value(name, getattr(self, name), same)
        for number, message in enumerate(self.messages):
            for name in EMPTY:
                refuse_value(f"messages.{number}.{name}", getattr(message, name), ([],))

    def settings(self) -> ChatSettings:
        """Return the settings of the answer. Raises ChatError."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if not isinstance(stop, list) or not all(isinstance(text, str) for text in stop):
            raise ChatError("stop", _("`stop` must be a text or a list of texts."))
        tokens = next(
            (n for n in (self.max_completion_tokens, self.max_tokens) if n is not None), DEFAULT_TOKENS
        )
        return ChatSettings(
            max_tokens=tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=secrets.randbelow(2**63) if self.seed is None else self.seed % 2**63,
            stop=tuple(stop),
        )


def refuse_value(name: str, value: Any, same: tuple[Any, ...]) -> None:
    """Refuse a value that is given and none of those that change nothing."""
    if value is not None and not any(value == one and type(value) is type(one) for one in same):
        raise invalid(name, _("`%(name)s` is not supported.") % {"name": name})


@dataclass(frozen=True)
class Completion:
    """The values that all parts of one answer share."""

    id: str
    created: int
    model: str

    def chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        """Return a part of a streamed answer."""
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**self._frame("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, end: End) -> dict[str, Any]:
        """Return the part that counts the tokens."""
        return {**self._frame("chat.completion.chunk"), "choices": [], "usage": usage(end)}

    def whole(self, text: str, end: End) -> dict[str, Any]:
        """Return an answer in one piece."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": end.reason, "logprobs": None}
        return {**self._frame("chat.completion"), "choices": [choice], "usage": usage(end)}

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(end: End) -> dict[str, int]:
    """Return the tokens of prompt and answer."""
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.tokens,
        "total_tokens": end.prompt_tokens + end.tokens,
    }


@router.post("")
def create(request: Call, payload: CompletionIn) -> HttpResponseBase:
    """Answer a chat, at once or as server-sent events."""
    payload.refuse_unsupported()
    found = find(request, payload.model)
    model = ChatModel(found.base_model, found) if isinstance(found, Adapter) else ChatModel(found)
    messages = [
        {"role": ROLES.get(message.role, message.role), "content": message.content}
        for message in payload.messages
    ]
    completion = Completion(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), payload.model)
    project, by = request.auth.project, request.auth.user
    release_connection()

    def is_admitted() -> bool:
        return ApiToken.objects.working().filter(pk=request.auth.pk).exists()

    async def answer() -> HttpResponseBase:
        try:
            parts = await stream_chat(project, model, messages, payload.settings(), by=by)
            if payload.stream:
                parts = while_admitted(parts, is_admitted)
                counts = payload.stream_options is not None and payload.stream_options.include_usage
                return StreamResponse(events(parts, completion, counts=counts), "text/event-stream")
            async with aclosing(parts) as open_parts:
                return JsonResponse(await collect(open_parts, completion))
        except ChatError as error:
            field = "max_completion_tokens" if payload.max_completion_tokens is not None else "max_tokens"
            name = field if error.field == "max_tokens" else error.field
            raise invalid(name or None, error.message) from error
        except ChatFailed as error:
            raise refusal_of(error) from error

    return later(request, answer)


def refusal_of(error: ChatFailed) -> Refusal:
    """Return the refusal of a chat; OpenAI's clients try again after 503."""
    if isinstance(error, ModelUnknown):
        return Refusal(404, error.code, error.message, "model")
    if isinstance(error, ChatInvalid):
        code = "context_length_exceeded" if error.code == "too_long" else error.code
        return Refusal(400, code, error.message, "messages")
    wait = error.retry_after if isinstance(error, ChatUnavailable) else RETRY_SECONDS
    return Refusal(503, error.code, error.message, None, {"Retry-After": str(wait)})


async def collect(parts: AsyncIterator[Text | End], completion: Completion) -> dict[str, Any]:
    """Return the whole answer."""
    text = ""
    async for part in parts:
        if isinstance(part, End):
            return completion.whole(text, part)
        text += part.text
    raise ChatBroken("engine_stopped", _("The worker stopped in the middle of the answer."))


async def events(
    parts: AsyncGenerator[Text | End, None], completion: Completion, *, counts: bool
) -> AsyncGenerator[str, None]:
    """Yield the answer as server-sent events. An error in the middle is the last of them."""
    try:
        # Closing the relay's stream cancels the request of a client that has gone.
        async with aclosing(parts) as open_parts:
            yield data(completion.chunk({"role": "assistant", "content": ""}))
            async for part in open_parts:
                if isinstance(part, Text):
                    yield data(completion.chunk({"content": part.text}))
                    continue
                yield data(completion.chunk({}, part.reason))
                if counts:
                    yield data(completion.usage_chunk(part))
                yield "data: [DONE]\n\n"
                return
        yield data({"error": error_object(401, "unauthorized", _("This token does not work any more."))})
    except ChatFailed as error:
        yield data({"error": error_object(503, error.code, error.message)})


def data(value: dict[str, Any]) -> str:
    """Format one event; JSON has no line breaks."""
    return f"data: {json.dumps(value)}\n\n"
