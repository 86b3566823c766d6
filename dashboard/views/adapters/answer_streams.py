"""Streams of the answers of several models to one prompt, with their names or blind.

A stream consists of JSON lines for all columns, because a browser opens few connections to a server:
`{"state", "text"}` until the model is ready, then per column `{"column", "text", "tokens"}` and a last line
with `end`; `{"error", "text"}` ends a column, or without one everything. Two blind answers end with
`{"comparison"}`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django import forms
from django.db import close_old_connections
from django.http import JsonResponse
from django.utils.translation import gettext as _

from dashboard.chat_relay import ChatFailed, ChatModel, starting_states, stream_chat
from dashboard.forms.adapters import ModelsForm
from dashboard.gate import Request
from dashboard.models import BaseModel, BlindComparison, Project, TryOutLink, User
from dashboard.outage import DATABASE_ERRORS
from dashboard.presenters.playground import trainings_to_wait_for
from dashboard.streams import StreamResponse, release_connection, while_admitted
from dashboard.views.readers import Reader
from workers.contract.chat import ChatError, ChatSettings, End

logger = logging.getLogger(__name__)
# Between two looks at the trainings that answers wait for.
TRAINING_SECONDS = 2.0
# Events that wait for a slow reader; then the columns wait as well.
MOST_UNREAD = 64
# What a blind column shows: neither times nor numbers of tokens.
BLIND_FIELDS = ("state", "column", "text", "end", "error")
FormT = TypeVar("FormT", bound=ModelsForm)
Event = dict[str, Any]
Messages = list[dict[str, str]]


async def checked(kind: type[FormT], request: Request, project: Project | None = None) -> FormT:
    """Return the posted form of the project, by default the open one, after its checks."""

    def check() -> FormT:
        form = kind(request.POST, project or request.project, request.user)
        form.full_clean()
        return form

    return await sync_to_async(check)()


def refusal_of(form: forms.Form) -> JsonResponse:
    """Return the errors of a form, for a script."""
    texts = [str(text) for errors in form.errors.values() for text in errors]
    return JsonResponse({"error": "refused", "text": " ".join(texts)}, status=422)


async def reader_of(request: Request, project: Project) -> Reader:
    """Return who reads a stream that this request opens."""
    return await sync_to_async(Reader.of)(request.user, request.session, project.pk)


async def lines_of(events: AsyncGenerator[Event, None], is_admitted: Callable[[], bool]) -> StreamResponse:
    """Return a response that sends events as lines of JSON, as long as the reader is admitted."""
    await sync_to_async(release_connection)()

    async def lines() -> AsyncGenerator[str, None]:
        async with aclosing(while_admitted(events, is_admitted)) as open_events:
            async for event in open_events:
                yield json.dumps(event) + "\n"

    return StreamResponse(lines(), "application/x-ndjson")


async def starting_events(
    base: BaseModel, user: User | None, *, after_trainings: bool = False
) -> AsyncGenerator[Event, None]:
    """Yield the states of the model until it is ready, or until an error.

    With `after_trainings` the model is not asked for before no training runs any more.
    """
    try:
        while after_trainings and (text := await in_own_thread(trainings_to_wait_for)):
            yield {"state": "training", "text": text}
            await asyncio.sleep(TRAINING_SECONDS)
        async for state in starting_states(base, user):
            yield {"state": state.value, "text": str(state.label)}
    except ChatFailed as failure:
        yield {"error": failure.code, "text": failure.message}
    except DATABASE_ERRORS:
        yield {"error": "away", "text": _("The database cannot be reached. Try again shortly.")}


async def answers(
    project: Project,
    user: User | None,
    models: Sequence[ChatModel],
    messages: Messages,
    settings: ChatSettings,
    *,
    after_trainings: bool = False,
) -> AsyncGenerator[Event, None]:
    """Yield the states of the model until it is ready, then the parts of all answers as they come."""
    async for event in starting_events(models[0].base, user, after_trainings=after_trainings):
        yield event
        if "error" in event:
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
    project: Project, user: User | None, model: ChatModel, messages: Messages, settings: ChatSettings
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


async def in_own_thread(function: Callable[..., str], *arguments: Any) -> str:
    """Call a function that uses the database, and close its connection."""

    def call() -> str:
        try:
            return function(*arguments)
        finally:
            close_old_connections()

    # A thread-sensitive call would hold one database connection per stream.
    return await sync_to_async(call, thread_sensitive=False)()


def storable(text: str) -> str:
    """Return text of a model without NUL, which PostgreSQL does not store."""
    return text.replace("\0", "\ufffd")


async def blind_answers(
    project: Project,
    voter: User | TryOutLink,
    models: Sequence[ChatModel],
    messages: Messages,
    settings: ChatSettings,
    *,
    after_trainings: bool = False,
) -> AsyncGenerator[Event, None]:
    """Yield the answers of two of the models in random order, without what tells them apart.

    Both answers are stored at their end; the last event has the token by which a vote names them.
    """
    user = voter.created_by if isinstance(voter, TryOutLink) else voter
    pair = secrets.SystemRandom().sample(models, 2)
    texts, complete = ["", ""], 0
    parts = answers(project, user, pair, messages, settings, after_trainings=after_trainings)
    async with aclosing(parts) as events:
        async for event in events:
            if "column" in event and "error" not in event:
                texts[event["column"]] += storable(event.get("text", ""))
                complete += "end" in event
            yield {name: event[name] for name in BLIND_FIELDS if name in event}
    if complete < len(pair):
        return

    def record() -> str:
        adapters = [model.adapter for model in pair]
        return BlindComparison.record(project, pair[0].base, adapters, messages, texts, voter=voter).token()

    try:
        yield {"comparison": await in_own_thread(record)}
    except DATABASE_ERRORS:
        yield {"error": "away", "text": _("The database cannot be reached, so these answers get no vote.")}
