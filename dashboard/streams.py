"""Responses that go on or wait for minutes: they hold no thread and no database connection."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from asgiref.sync import SyncToAsync
from django.core.handlers.asgi import ASGIHandler
from django.db import connection
from django.http import HttpResponseBase, StreamingHttpResponse

from dashboard.back_pressure import release_turn


def release_connection() -> None:
    """Give back the turn of the request and this thread's connection, until the end of the stream."""
    release_turn()
    # A test's transaction would be lost.
    if not connection.in_atomic_block:
        connection.close()


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
