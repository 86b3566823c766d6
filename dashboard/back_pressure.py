"""Back pressure: a bounded number of requests works at a time, some wait, and the rest gets 503 at once.

A request takes its turn when its body has arrived, so that slow clients hold nothing. It gives it back when
its response begins, or when it waits for something else than this process (`streams.release_connection`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from django.conf import settings
from django.http import HttpResponse
from django.template import loader
from django.utils.translation import gettext as _

from dashboard import openai_errors
from dashboard.gate import API_PREFIXES, Message, Receive, Scope, Send, api_error

# Beyond this number, each further request would wait longer than people do.
WAITING = 100
WAIT_SECONDS = 10.0
RETRY_SECONDS = 5
# Probes ask whether the process lives, and a busy one does.
UNLIMITED_PATHS = ("/healthz/",)


class Busy(Exception):
    """Too many requests wait already, or this one waited too long."""


class Turn:
    """The right of one request to work; `release` may be called twice."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.loop = turns, asyncio.get_running_loop()
        self.is_held = False

    async def acquire(self) -> None:
        """Wait for a turn. Raises Busy."""
        if not self.turns.free.locked():
            await self.turns.free.acquire()
        elif self.turns.waiting >= WAITING:
            raise Busy
        else:
            self.turns.waiting += 1
            try:
                await asyncio.wait_for(self.turns.free.acquire(), WAIT_SECONDS)
            except TimeoutError:
                raise Busy from None
            finally:
                self.turns.waiting -= 1
        self.is_held = True

    def release(self) -> None:
        if self.is_held:
            self.is_held = False
            self.turns.free.release()


class Turns:
    """The turns of this process, and the number of requests that wait for one."""

    def __init__(self, count: int) -> None:
        self.free, self.waiting = asyncio.Semaphore(count), 0


_turn: ContextVar[Turn | None] = ContextVar("turn", default=None)


def release_turn() -> None:
    """Give back the turn of the present request, which goes on to wait for something else."""
    if turn := _turn.get():
        # Views call this in their own thread.
        turn.loop.call_soon_threadsafe(turn.release)


class BackPressure:
    """ASGI wrapper that admits requests to the application."""

    def __init__(self, inner: Callable[[Any, Any, Any], Awaitable[None]], limit: int | None = None) -> None:
        self.inner = inner
        self.turns = Turns(limit or settings.REQUESTS_AT_A_TIME)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNLIMITED_PATHS:
            await self.inner(scope, receive, send)
            return
        turn = Turn(self.turns)
        mark = _turn.set(turn)
        has_arrived = False

        async def admitted() -> Message:
            nonlocal has_arrived
            message = await receive()
            if not has_arrived and message["type"] == "http.request" and not message.get("more_body"):
                has_arrived = True
                await turn.acquire()
            return message

        async def watched(message: Message) -> None:
            turn.release()
            await send(message)

        try:
            await self.inner(scope, admitted, watched)
        except Busy:
            await refuse_busy(scope, send)
        finally:
            turn.release()
            _turn.reset(mark)


async def refuse_busy(scope: Scope, send: Send) -> None:
    """Answer 503 with Retry-After: a page for people, an error for programs."""
    response: HttpResponse
    if scope["path"].startswith(API_PREFIXES):
        response = api_error(503, "busy", _("The server is busy. Try again shortly."))
    else:
        # A form is not sent again by itself.
        seconds = RETRY_SECONDS if scope["method"] == "GET" else None
        response = HttpResponse(loader.render_to_string("busy.html", {"reload_seconds": seconds}), status=503)
    if scope["path"].startswith(openai_errors.PREFIX):
        response = openai_errors.translate(response)
    response["Retry-After"], response["Cache-Control"] = str(RETRY_SECONDS), "no-store"
    response["Content-Security-Policy"] = "default-src 'self'"
    response["X-Content-Type-Options"] = "nosniff"
    response["Content-Length"] = str(len(response.content))
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.items()]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": response.content})
