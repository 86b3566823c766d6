"""Lines from the thread that reads the engine's output to its supervisor, in order."""

from __future__ import annotations

import threading
from collections import deque


class LineQueue:
    """An unbounded queue whose oldest line stays until it is dropped, so that a failed write is repeated.

    `stop_policy.OUTAGE_SECONDS` limits an outage of the database, and so the length of the queue.
    """

    def __init__(self) -> None:
        self.is_closed = False
        self._lines: deque[bytes] = deque()
        self._changed = threading.Condition()

    def put(self, line: bytes) -> None:
        """Append a line."""
        with self._changed:
            self._lines.append(line)
            self._changed.notify()

    def close(self) -> None:
        """Mark the end of the lines."""
        with self._changed:
            self.is_closed = True
            self._changed.notify()

    def wait(self, seconds: float) -> None:
        """Wait for a line or the end of the lines, at most so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self.is_closed, seconds)

    def first(self) -> bytes | None:
        """Return the oldest line without removing it; None if there is none now."""
        with self._changed:
            return self._lines[0] if self._lines else None

    def drop(self) -> None:
        """Remove the oldest line."""
        with self._changed:
            self._lines.popleft()
