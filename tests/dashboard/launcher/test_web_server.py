"""The web server sleeps while nobody asks it anything, and ends at once."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from unittest.mock import AsyncMock

import pytest
import uvicorn

from dashboard.launcher import web_server
from dashboard.launcher.web_server import WebServer


async def application(_scope: object, _receive: object, _send: object) -> None:
    """Answer nothing."""


def server() -> WebServer:
    return WebServer(uvicorn.Config(application, lifespan="off", log_level="warning"))


def test_signal_ends_the_loop_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "TICK_SECONDS", 30.0)
    running = server()

    async def run() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, running.handle_exit, signal.SIGTERM, None)
        began = time.monotonic()
        await asyncio.wait_for(running.main_loop(), 20)
        return time.monotonic() - began

    assert asyncio.run(run()) < 10


def test_signal_during_the_start_ends_it() -> None:
    starting = server()
    starting.handle_exit(signal.SIGTERM, None)
    asyncio.run(asyncio.wait_for(starting.main_loop(), 5))


def test_date_of_answers_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "TICK_SECONDS", 0.01)
    running = server()
    tick = AsyncMock(side_effect=[False, False, True])
    monkeypatch.setattr(running, "on_tick", tick)
    asyncio.run(asyncio.wait_for(running.main_loop(), 5))
    assert [call.args for call in tick.await_args_list] == [(0,)] * 3, "0 renews the header with the date"


def test_answers_do_not_wait_for_acknowledgements() -> None:
    async def run() -> int:
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(
            application, lifespan="off", http="dashboard.launcher.http_protocol:HttpProtocol"
        )
        config.load()
        running = WebServer(config)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = await loop.create_server(
                lambda: config.http_protocol_class(config, running.server_state, {}, loop), sock=listener
            )
            _reader, writer = await asyncio.open_connection(*listener.getsockname())
            while not running.server_state.connections:
                await asyncio.sleep(0.01)
            (connection,) = running.server_state.connections
            accepted = connection.transport.get_extra_info("socket")
            found = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()
            serving.close()
        return int(found)

    assert asyncio.run(asyncio.wait_for(run(), 10))
