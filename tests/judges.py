"""A judge on loopback that speaks the protocol: what it answers, and how slowly, is the test's choice."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# (status, body, further headers); a body that is no bytes is sent as JSON.
Answer = tuple[int, Any, dict[str, str]]


@dataclass
class Judge:
    """What was asked so far, and how each request is answered."""

    answer: Callable[[dict[str, str]], Answer]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def asked(self) -> list[dict[str, str]]:
        """The material of each request."""
        return [json.loads(one["messages"][1]["content"]) for one in self.requests]


def saying(text: str) -> Answer:
    """A reply of a chat model with this text."""
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}, {}


def verdict(is_right: bool) -> Answer:
    """The reply that was asked for."""
    return saying(json.dumps({"verdict": "right" if is_right else "wrong"}))


def fair(material: dict[str, str]) -> Answer:
    """Right where the given answer is the expected one."""
    return verdict(material["given"].strip() == material["expected"].strip())


@contextmanager
def judge(answer: Callable[[dict[str, str]], Answer] = fair) -> Iterator[Judge]:
    """A judge that answers like this, on a free port."""
    seen = Judge(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.requests.append(body)
            seen.headers.append(dict(self.headers))
            seen.paths.append(self.path)
            status, content, headers = seen.answer(json.loads(body["messages"][1]["content"]))
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    seen.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
