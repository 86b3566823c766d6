"""HTTP connections that answer at once and end when the other side stops reading, for `uvicorn --http`.

Uvicorn waits for ever until a client reads what was written, and with it the response and its stream wait.
"""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol

# For so long a client may read nothing of what waits for it. Its request is then cancelled.
UNREAD_SECONDS = 60.0


class HttpProtocol(H11Protocol):
    """Lets the kernel send each part at once, and end connections that nobody reads."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connection: socket.socket = transport.get_extra_info("socket")
        # A proxy on the same machine may use a Unix socket.
        if connection.family != socket.AF_UNIX:
            # asyncio sets it only for sockets that name TCP, and uvicorn's do not: a body would wait 40 ms
            # for the client to acknowledge the headers.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * UNREAD_SECONDS))
