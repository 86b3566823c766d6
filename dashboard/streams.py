"""Responses that go on or wait for minutes: they hold no thread and no database connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from asgiref.sync import SyncToAsync, sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.db import close_old_connections, connection
from django.http import HttpResponseBase, StreamingHttpResponse

from dashboard.back_pressure import release_turn
from dashboard.outage import DATABASE_ERRORS

# Sign-out, removal and a change of role end a stream within this time and one look at the database.
ACCESS_SECONDS = 3.0
E = TypeVar("E")


def release_connection() -> None:
    """Give back the turn of the request and this thread's connection, until the end of the stream."""
    release_turn()
    # A test's transaction would be lost.
    if not connection.in_atomic_block:
        connection.close()


async def while_admitted(
    events: AsyncGenerator[E, None], is_admitted: Callable[[], bool]
) -> AsyncGenerator[E, None]:
    """Yield the events until their end, or until `is_admitted`, which may use the database, returns False."""
    async with aclosing(events) as open_events:
        refusal = asyncio.create_task(wait_for_refusal(is_admitted))
        waiting: set[asyncio.Future[Any]] = {refusal}
        try:
            while True:
                following = asyncio.ensure_future(anext(open_events, None))
                waiting.add(following)
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if refusal.done():
                    refusal.result()
                    return
                waiting.remove(following)
                event = following.result()
                if event is None:
                    return
                yield event
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


async def wait_for_refusal(is_admitted: Callable[[], bool]) -> None:
    """Return once `is_admitted` returns False."""

    def look() -> bool:
        try:
            return is_admitted()
        finally:
            close_old_connections()

    is_open = True
    while is_open:
        await asyncio.sleep(ACCESS_SECONDS)
        with suppress(*DATABASE_ERRORS):
            # A thread-sensitive call would hold one database connection per stream.
            is_open = await sync_to_async(look, thread_sensitive=False)()


class StreamResponse(StreamingHttpResponse):
    """Sends each part at once, and closes `parts` wherever the response ends."""

    def __init__(self, parts: AsyncGenerator[str, None], content_type: str) -> None:
        super().__init__(parts, content_type=content_type)
        self.parts = parts
        self["Cache-Control"] = "no-store"
        # nginx would buffer the parts.
        self["X-Accel-Buffering"] = "no"


class LaterResponse(StreamingHttpResponse):
    """A response that `make` returns once it is known, with the headers that the middleware sets on this."""

    def __init__(self, make: Callable[[], Awaitable[HttpResponseBase]]) -> None:
        super().__init__()
        self.make = make

    async def wait(self) -> HttpResponseBase:
        """Return the response, with the status and the headers that are sent."""
        response = await self.make()
        for name, value in self.items():
            response.headers.setdefault(name, value)
        response.cookies.update(self.cookies)
        return response


class Handler(ASGIHandler):
    """Sends responses that go on or wait without the thread in which middleware and view have run."""

    async def send_response(self, response: HttpResponseBase, send: Any) -> None:
        # Both have released their connection; that of a download is closed in its thread at the end.
        if isinstance(response, StreamResponse | LaterResponse):
            end_thread()
        if isinstance(response, LaterResponse):
            response = await response.wait()
        try:
            await super().send_response(response, send)
        finally:
            if isinstance(response, StreamResponse):
                await response.parts.aclose()


def end_thread() -> None:
    """End the idle thread of this request; asgiref would keep it until the response has ended."""
    context = SyncToAsync.thread_sensitive_context.get(None)
    # Code that still needs a thread gets a new one.
    executor = SyncToAsync.context_to_thread_executor.pop(context, None) if context else None
    if executor:
        executor.shutdown(wait=False)
