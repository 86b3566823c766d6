"""An engine with a script, for answers that a real inference job does not give on request."""

from __future__ import annotations

import contextlib
import itertools
import socketserver
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from dashboard.models import BaseModel
from workers.contract.chat import Accepted, ChatEvent, ChatRequest, End, Text, to_line

HELLO: list[ChatEvent] = [Accepted(7), Text("Hel", 1), Text("lo\nyou", 3), End("stop", 7, 3)]


@dataclass
class Engine:
    """The requests so far, and the events that answer each."""

    events: Sequence[ChatEvent]
    requests: list[ChatRequest] = field(default_factory=list)
    # Whether it goes on answering after its last event, until the request is cancelled.
    waits: bool = False
    # Whether it repeats its last event until then.
    is_endless: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)
    written: int = 0  # bytes

    def script(self) -> Iterable[ChatEvent]:
        return itertools.chain(self.events, itertools.repeat(self.events[-1]) if self.is_endless else ())


@contextmanager
def engine(base: BaseModel, events: Sequence[ChatEvent] = HELLO) -> Iterator[Engine]:
    """Answer chats with a base model by these events."""
    seen = Engine(events)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            seen.requests.append(ChatRequest.from_line(self.rfile.readline()))
            with contextlib.suppress(ConnectionError):
                for event in seen.script():
                    seen.written += self.wfile.write(to_line(event))
            # The end of its connection cancels a request.
            if seen.is_endless or (seen.waits and not self.rfile.read()):
                seen.cancelled.set()

    class Server(socketserver.ThreadingUnixStreamServer):
        # Of many chats at once.
        request_queue_size = 100
        # A test that fails does not wait for its answers.
        daemon_threads, block_on_close = True, False

    base.socket().parent.mkdir(parents=True, exist_ok=True)
    base.socket().unlink(missing_ok=True)
    with Server(str(base.socket()), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield seen
        server.shutdown()
    base.socket().unlink()
