"""Many chats that wait, and clients that leave their answers unread, with a scripted engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from asgiref.testing import ApplicationCommunicator

from dashboard.asgi import application
from dashboard.back_pressure import BackPressure
from dashboard.launcher import http_protocol
from dashboard.models import BaseModel
from tests.dashboard.openai.scripted_engine import engine
from workers.contract.chat import MAX_EVENT, Accepted, Text

pytestmark = pytest.mark.django_db(transaction=True)
WAITING = 16
LONG = Text("x" * 1000, 1)


def body_of(**options: Any) -> bytes:
    return json.dumps(
        {"model": "example/tiny", "messages": [{"role": "user", "content": "hi"}], **options}
    ).encode()


def headers_of(token: str) -> dict[str, str]:
    return {"host": "localhost", "content-type": "application/json", "authorization": f"Bearer {token}"}


def scope_of(token: str) -> dict[str, Any]:
    lines = [(name.encode(), value.encode()) for name, value in headers_of(token).items()]
    path = "/v1/chat/completions"
    return {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": lines}


def request_threads() -> int:
    """Return the number of threads in which middleware and views run."""
    return sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())


@pytest.mark.parametrize("stream", [False, True])
def test_waiting_chats_hold_no_thread_and_are_cancelled_when_their_client_leaves(
    base_model: BaseModel, token: str, stream: bool
) -> None:
    async def wait_and_leave() -> int:
        before = request_threads()
        # Its turns belong to one event loop; on a busy machine a request waits too long for one.
        fresh = BackPressure(application.inner, WAITING)
        chats = [ApplicationCommunicator(fresh, scope_of(token)) for _number in range(WAITING)]
        for chat in chats:
            await chat.send_input({"type": "http.request", "body": body_of(stream=stream)})
        while len(busy.requests) < WAITING:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        held = request_threads() - before
        for chat in chats:
            assert chat.output_queue.empty() != stream, "only a stream has begun"
            await chat.send_input({"type": "http.disconnect"})
        for chat in chats:
            await chat.wait(60)
        return held

    with engine(base_model, [Accepted(7)]) as busy:
        busy.waits = True
        assert asyncio.run(asyncio.wait_for(wait_and_leave(), 120)) < 4
        assert busy.cancelled.wait(60)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a real web server that waits a second for clients which read nothing."""
    monkeypatch.setattr(http_protocol, "UNREAD_SECONDS", 1.0)
    fresh, protocol = BackPressure(application.inner), http_protocol.HttpProtocol
    config = uvicorn.Config(fresh, port=0, http=protocol, lifespan="off", log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = server.force_exit = True
    thread.join()


def test_a_client_that_reads_nothing_is_cancelled_within_bounded_memory(
    base_model: BaseModel, token: str, port: int
) -> None:
    body = body_of(stream=True)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers_of(token).items())
    head = f"POST /v1/chat/completions HTTP/1.1\r\n{lines}content-length: {len(body)}\r\n\r\n".encode()
    with engine(base_model, [Accepted(7), LONG]) as asked, socket.socket() as client:
        asked.is_endless = True
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(head + body)
        assert asked.cancelled.wait(60), "it is never cancelled"
        assert asked.written < 4 * MAX_EVENT + 4 * 1024**2, "kernel buffers and two lines"
        assert not ends_regularly(client)


def ends_regularly(client: socket.socket) -> bool:
    """Read what has come; return whether it ends like a whole answer."""
    client.settimeout(60)
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            found += part
    return found.endswith(b"0\r\n\r\n")
