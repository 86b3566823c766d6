"""The playground: a prompt to the base model and adapters side by side, answered as it is written.

The answer is one stream of JSON lines for all columns, because a browser opens few connections to a server:
`{"state", "text"}` until the model is ready, then per column `{"column", "text", "tokens"}` and a last line
with `end`; `{"error", "text"}` ends a column, or without one everything.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from asgiref.sync import sync_to_async
from django.http import HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from dashboard.chat_relay import (
    ChatFailed,
    ChatInvalid,
    ChatModel,
    request_engine,
    starting_states,
    stream_chat,
)
from dashboard.forms.adapters import PromptForm
from dashboard.gate import Request
from dashboard.models import BaseModel, Project, User
from dashboard.outage import DATABASE_ERRORS
from dashboard.presenters.playground import playground
from dashboard.streams import release_connection, stream_of
from workers.contract.chat import ChatError, ChatSettings, End

logger = logging.getLogger(__name__)
# Events that wait for a slow reader; then the columns wait as well.
MOST_UNREAD = 64
Event = dict[str, Any]


@require_GET
def index(request: Request) -> HttpResponse:
    """Show the playground; ?base= and up to four ?column= (`base` or an adapter's number) choose."""
    shown = playground(
        request.project, request.user, request.GET.get("base", ""), request.GET.getlist("column")
    )
    form = PromptForm(None, request.project, request.user)
    form.initial = {"base": shown.base}
    return render(request, "adapters/playground.html", {"playground": shown, "form": form})


@require_POST
async def start(request: Request) -> HttpResponse:
    """Start the model before the first prompt, so that its answer comes sooner."""
    form = PromptForm(request.POST, request.project, request.user)
    await sync_to_async(form.full_clean)()
    base: BaseModel | None = form.cleaned_data.get("base")
    if base is None:
        return JsonResponse({"error": "unknown"}, status=422)
    try:
        state = await request_engine(base, request.user)
    except ChatInvalid as refusal:
        return JsonResponse({"error": refusal.code, "text": refusal.message}, status=422)
    return JsonResponse({"state": state.value})


@require_POST
async def answer(request: Request) -> HttpResponseBase:
    """Stream the answers of all columns to one prompt."""
    form = PromptForm(request.POST, request.project, request.user)
    if not await sync_to_async(form.is_valid)():
        texts = [str(text) for errors in form.errors.values() for text in errors]
        return JsonResponse({"error": "refused", "text": " ".join(texts)}, status=422)
    await sync_to_async(release_connection)()
    events = answers(request.project, request.user, form.models, form.messages(), form.settings())
    return stream_of(as_lines(events), "application/x-ndjson")


async def as_lines(events: AsyncGenerator[Event, None]) -> AsyncIterator[str]:
    """Yield events as lines of JSON."""
    async with aclosing(events) as open_events:
        async for event in open_events:
            yield json.dumps(event) + "\n"


async def answers(
    project: Project,
    user: User,
    models: list[ChatModel],
    messages: list[dict[str, str]],
    settings: ChatSettings,
) -> AsyncGenerator[Event, None]:
    """Yield the states of the model until it is ready, then the parts of all answers as they come."""
    try:
        async for state in starting_states(models[0].base, user):
            yield {"state": state.value, "text": str(state.label)}
    except ChatFailed as failure:
        yield {"error": failure.code, "text": failure.message}
        return
    except DATABASE_ERRORS:
        yield {"error": "away", "text": _("The database cannot be reached. Try again shortly.")}
        return
    unread: asyncio.Queue[Event] = asyncio.Queue(MOST_UNREAD)

    async def follow(column: int, model: ChatModel) -> None:
        async for event in column_events(project, user, model, messages, settings):
            await unread.put({"column": column, **event})

    tasks = [asyncio.create_task(follow(column, model)) for column, model in enumerate(models)]
    try:
        for _number in tasks:
            while not is_last(event := await unread.get()):
                yield event
            yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def is_last(event: Event) -> bool:
    """Return whether this is the last event of its column."""
    return "end" in event or "error" in event


async def column_events(
    project: Project, user: User, model: ChatModel, messages: list[dict[str, str]], settings: ChatSettings
) -> AsyncGenerator[Event, None]:
    """Yield the parts of one answer; the last one has its number of tokens and its speed, or an error."""
    sent = time.monotonic()
    first = last = 0.0
    try:
        parts = await stream_chat(project, model, messages, settings, by=user)
        async with aclosing(parts) as open_parts:
            async for part in open_parts:
                last = time.monotonic()
                first = first or last
                if not isinstance(part, End):
                    yield {"text": part.text, "tokens": part.tokens}
                    continue
                speed = (part.tokens - 1) / (last - first) if part.tokens > 1 and last > first else None
                yield {
                    "end": part.reason,
                    "tokens": part.tokens,
                    "first_ms": round(1000 * (first - sent)),
                    "tokens_per_second": speed and round(speed, 1),
                }
    except (ChatFailed, ChatError) as failure:
        yield {"error": getattr(failure, "code", "refused"), "text": failure.message}
    except Exception:
        logger.exception("a chat with %s failed", model.adapter or model.base)
        yield {"error": "internal_error", "text": _("The answer could not be read. Try again.")}
