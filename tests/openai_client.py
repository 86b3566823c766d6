"""The unmodified `openai` package as a client of the ASGI application, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from asgiref.sync import async_to_sync
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from openai import OpenAI

from dashboard.asgi import application
from dashboard.models import ApiToken, Project, User

Connect = Callable[..., OpenAI]


@contextmanager
def open_connection() -> Iterator[None]:
    """Keep the connection and its transaction open while a request starts and ends."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    try:
        yield
    finally:
        for signal in (request_started, request_finished):
            signal.connect(close_old_connections)


class AsgiTransport(httpx2.BaseTransport):
    """Answers requests by the ASGI application in this thread, and records them."""

    def __init__(self) -> None:
        self.requests: list[httpx2.Request] = []
        # Answers of earlier tries that get lost on the way to the client.
        self.lost = 0
        # The text in a streamed answer after which the client closes the connection.
        self.leaves_after = ""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.requests.append(request)
        messages: list[dict[str, Any]] = []
        body = iter([{"type": "http.request", "body": request.content, "more_body": False}])

        left = asyncio.Event()

        async def receive() -> dict[str, Any]:
            message = next(body, None)
            if message is None:
                await left.wait()
            return message or {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)
            if self.leaves_after and self.leaves_after.encode() in message.get("body", b""):
                left.set()

        with open_connection():
            async_to_sync(application)(scope_of(request), receive, send)
        if self.lost:
            self.lost -= 1
            raise httpx2.ReadError("The connection was lost.")
        content = b"".join(message.get("body", b"") for message in messages[1:])
        return httpx2.Response(messages[0]["status"], headers=messages[0]["headers"], content=content)


def scope_of(request: httpx2.Request) -> dict[str, Any]:
    """Return the ASGI scope of a request; servers decode its path."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.url.path,
        "raw_path": request.url.raw_path,
        "query_string": request.url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
    }


@pytest.fixture
def transport() -> AsgiTransport:
    return AsgiTransport()


@pytest.fixture
def connect(transport: AsgiTransport) -> Iterator[Connect]:
    """Return a function that connects a client with a token, without retries unless asked for."""
    clients = []

    def client_of(secret: str, **options: Any) -> OpenAI:
        http = httpx2.Client(transport=transport)
        given = {"max_retries": 0, **options}
        clients.append(OpenAI(api_key=secret, base_url="http://localhost/v1", http_client=http, **given))
        return clients[-1]

    yield client_of
    for client in clients:
        client.close()


def client_of(connect: Connect, project: Project, user: User, **options: Any) -> OpenAI:
    """Return a client with a new token of the user."""
    return connect(ApiToken.issue(project, user, "tests", **options)[1])
