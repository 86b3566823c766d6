"""A TCP proxy on loopback that injects network faults: silence and refused connections.

with Proxy("127.0.0.1:5432") as proxy:      # or the path of a Unix socket
    connect(port=proxy.port)
    proxy.black_hole()                      # accepts connections and passes nothing
    proxy.heal()
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

CHUNK = 65_536
RESET = struct.pack("ii", 1, 0)  # closing with SO_LINGER 0 sends a reset


class Proxy:
    """Forwards connections to `upstream`. Its methods may be called from any thread."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.port = 0
        self.writers: set[asyncio.StreamWriter] = set()
        self.server: asyncio.Server | None = None
        self.loop = asyncio.new_event_loop()
        self.passing = asyncio.Event()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> Proxy:
        self.thread.start()
        self.heal()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self._do(self._finish)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(timeout=5)
        self.loop.close()

    def heal(self) -> None:
        """End all faults. What a black hole held back is sent, as TCP would repeat it."""
        self._do(self._heal)

    def black_hole(self) -> None:
        """Keep connections open and accept new ones, but pass nothing in either direction."""
        self.loop.call_soon_threadsafe(self.passing.clear)

    def refuse(self) -> None:
        """Stop listening and reset all connections."""
        self._do(self._close)

    @property
    def carries(self) -> bool:
        """Return whether data passes now."""
        return self.server is not None and self.passing.is_set()

    def _do(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run_coroutine_threadsafe(work(), self.loop).result(timeout=10)

    async def _heal(self) -> None:
        self.passing.set()
        if self.server is None:
            self.server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)
            self.port = self.server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None
        await self._cut()

    async def _cut(self) -> None:
        for writer in list(self.writers):
            peer = writer.get_extra_info("socket")
            if peer.family == socket.AF_INET:
                # A connection that was just closed needs no reset.
                with contextlib.suppress(OSError):
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()

    async def _finish(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        self.writers.add(writer)
        # Python's streams log the cancellation at the end of the proxy.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            # A black hole passes no connection attempt either.
            await self.passing.wait()
            answers, upstream = await self._connect()
            writers.append(upstream)
            self.writers.add(upstream)
            await asyncio.gather(self._pump(reader, upstream), self._pump(answers, writer))
        for each in writers:
            self.writers.discard(each)
            each.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.upstream.startswith("/"):
            return await asyncio.open_unix_connection(self.upstream)
        host, port = self.upstream.rsplit(":", 1)
        return await asyncio.open_connection(host, int(port))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward until one side ends. An error ends both, so that the server notices a killed client."""
        while chunk := await reader.read(CHUNK):
            await self.passing.wait()
            writer.write(chunk)
            await writer.drain()
        if not writer.transport.is_closing():
            writer.write_eof()
