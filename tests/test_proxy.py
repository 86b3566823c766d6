"""Faults of the proxy."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from tests.proxy import Proxy


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Proxy(f"127.0.0.1:{server.server_address[1]}") as made:
            yield made
        server.shutdown()


def call(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=1)


def say(line: socket.socket) -> bytes:
    line.sendall(b"hello\n")
    return line.recv(100)


def test_proxy_forwards_both_directions(proxy: Proxy) -> None:
    with call(proxy) as line:
        assert say(line) == b"hello\n"


def test_black_hole_passes_nothing_until_it_heals(proxy: Proxy) -> None:
    with call(proxy) as line:
        say(line)
        proxy.black_hole()
        with pytest.raises(TimeoutError):
            say(line)
        with call(proxy) as late, pytest.raises(TimeoutError):
            say(late)
        proxy.heal()
        assert line.recv(100) == b"hello\n"


def test_refusing_proxy_heals_on_the_same_port(proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        call(proxy)
    proxy.heal()
    with call(proxy) as line:
        assert say(line) == b"hello\n"


def test_reset_of_a_client_reaches_the_server(proxy: Proxy) -> None:
    with call(proxy) as line:
        say(line)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    deadline = time.monotonic() + 5
    while proxy.writers:
        assert time.monotonic() < deadline, "the server still has the connection"
        time.sleep(0.05)
