"""Responses that go on or wait for minutes: they hold no thread and no database connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from asgiref.sync import SyncToAsync
from django.core.handlers.asgi import ASGIHandler
from django.db import connection
from django.http import HttpResponseBase, StreamingHttpResponse

from dashboard.back_pressure import release_turn
from dashboard.gate import Send


def release_connection() -> None:
    """Give back the turn of the request and this thread's connection, until the end of the stream."""
    release_turn()
    # A test's transaction would be lost.
    if not connection.in_atomic_block:
        connection.close()


def stream_of(parts: AsyncIterator[str], content_type: str) -> StreamingHttpResponse:
    """Return a response that sends each part at once."""
    response = StreamingHttpResponse(parts, content_type=content_type)
    response["Cache-Control"] = "no-store"
    # nginx would buffer the parts.
    response["X-Accel-Buffering"] = "no"
    return response


class LaterResponse(StreamingHttpResponse):
    """A response that `make` returns once it is known. It gets the headers that the middleware sets on this."""

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

    async def send_response(self, response: HttpResponseBase, send: Send) -> None:
        if response.streaming:
            end_thread()
        if isinstance(response, LaterResponse):
            response = await response.wait()
        await super().send_response(response, send)


def end_thread() -> None:
    """End the idle thread of this request; asgiref would keep it until the response has ended."""
    context = SyncToAsync.thread_sensitive_context.get(None)
    # Code that still needs a thread gets a new one.
    executor = SyncToAsync.context_to_thread_executor.pop(context, None) if context else None
    if executor:
        executor.shutdown(wait=False)
