"""Responses that go on for minutes: they hold no database connection, and no proxy holds them back."""

from __future__ import annotations

from collections.abc import AsyncIterator

from django.db import connection
from django.http import StreamingHttpResponse

from dashboard.back_pressure import release_turn


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
