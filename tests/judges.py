"""A judge on loopback that speaks the chat completions protocol; the test chooses its replies."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# (status, body, further headers)
Answer = tuple[int, bytes, dict[str, str]]


@dataclass
class Judge:
    """The requests so far, and the function that replies to them."""

    answer: Callable[[dict[str, str]], Answer]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    @property
    def materials(self) -> list[dict[str, str]]:
        """Return the material of each request."""
        return [json.loads(request["messages"][1]["content"]) for request in self.requests]


def completion(text: str) -> Answer:
    """Return a chat completion with this text."""
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode(), {}


def exact(material: dict[str, str]) -> Answer:
    """Reply "right" if the given answer is the expected one."""
    is_right = material["given"].strip() == material["expected"].strip()
    return completion(json.dumps({"verdict": "right" if is_right else "wrong"}))


@contextmanager
def judge(answer: Callable[[dict[str, str]], Answer] = exact) -> Iterator[Judge]:
    """Serve a judge on a free port."""
    seen = Judge(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            seen.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            seen.keys.append(self.headers["Authorization"])
            status, body, headers = seen.answer(seen.materials[-1])
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    seen.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
