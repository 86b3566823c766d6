"""Outages of the database during an attempt.

Every write of an attempt goes through `Database.try_write`. One that fails because the database is away is
tried again later, so it must be repeatable. Knows nothing of jobs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db import InterfaceError, OperationalError, connection, connections

logger = logging.getLogger(__name__)

# A locked SQLite file counts as an outage too: it answers again later.
DATABASE_AWAY = (InterfaceError, OperationalError)
RETRY_SECONDS = 1.0
# A write that takes longer hangs. A slow publish is cut as well, and finds its folder published on retry.
ANSWER_SECONDS = 30.0
WATCH_SECONDS = 0.5


@dataclass(slots=True)
class Database:
    """The connection of one attempt. Times are monotonic seconds, 0 for never."""

    away_since: float = 0.0
    last_tried: float = 0.0
    write_started: float = 0.0

    @property
    def is_away(self) -> bool:
        """Return whether the last write failed."""
        return bool(self.away_since)

    @property
    def seconds_away(self) -> float:
        """Return the seconds since the first failed write; 0 while the database answers."""
        return time.monotonic() - self.away_since if self.is_away else 0.0

    def note_answer(self) -> None:
        """Note that the database answered in the middle of a long write, which therefore does not hang."""
        self.write_started = time.monotonic()

    def try_write(self, write: Callable[[], object]) -> bool:
        """Return whether `write` succeeded. Right after a failure it is not even tried."""
        now = time.monotonic()
        if self.is_away and now - self.last_tried < RETRY_SECONDS:
            return False
        self.write_started = now
        try:
            write()
        except DATABASE_AWAY as error:
            if not self.is_away:
                self.away_since = now
                logger.warning("the database is away, the engine works on: %s", str(error).strip())
            self.last_tried = time.monotonic()
            close_connection()
            return False
        finally:
            self.write_started = 0.0
        if self.is_away:
            logger.warning("the database is back after %.0f s", self.seconds_away)
            self.away_since = 0.0
        return True

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Close this thread's connection if a write hangs: a server may accept and never answer."""
        is_over = threading.Event()
        own: Any = connections["default"]

        def watch() -> None:
            while not is_over.wait(WATCH_SECONDS):
                started = self.write_started
                if started and time.monotonic() - started > ANSWER_SECONDS:
                    _close_socket(own.connection)

        # SQLite never hangs: its file is locked or not.
        if own.vendor == "postgresql":
            threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            is_over.set()


def _close_socket(server: Any) -> None:
    """Shut the socket down, so that the waiting thread gets an error."""
    with (
        contextlib.suppress(OSError, AttributeError, *DATABASE_AWAY),
        socket.socket(fileno=os.dup(server.pgconn.socket)) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)


def close_connection() -> None:
    """Close a connection that may be broken; the next query opens a new one."""
    if not connection.in_atomic_block:
        with contextlib.suppress(*DATABASE_AWAY):
            connection.close()
