"""A receiver of webhooks on loopback; the test chooses its answers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Receiver:
    """The events so far as (headers, body), and the status of the next answers."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    # Seconds between two bytes of its answers.
    wait: float = 0.0
    events: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def receiver(port: int = 0) -> Iterator[Receiver]:
    """Receive events on this port, or on a free one."""
    seen = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.events.append((dict(self.headers.items()), body))
            if seen.wait:
                with contextlib.suppress(OSError):
                    for byte in b"HTTP/1.1 204 No Content\r\n\r\n":
                        self.wfile.write(bytes([byte]))
                        time.sleep(seen.wait)
                return
            self.send_response(seen.statuses.pop(0) if seen.statuses else 204)
            self.send_header("Location", f"{seen.url}elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        seen.url = f"http://127.0.0.1:{server.server_port}/"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield seen
        server.shutdown()
