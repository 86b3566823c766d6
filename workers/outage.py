"""Whether the database answers a worker, and for how long it has not.

Every write of an attempt goes through `Database.try_to`: one that fails because the database is away is asked
for again later, so it must be repeatable. Knows nothing of jobs.
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

# A locked SQLite file counts as away: it also answers again later.
AWAY = (InterfaceError, OperationalError)
RETRY_SECONDS = 1.0
# A write that takes longer hangs; one that only saves a large folder finds it saved the second time.
ANSWER_SECONDS = 30.0
LISTEN_SECONDS = 0.5


@dataclass(slots=True)
class Database:
    """The way to the database, in monotonic seconds; `since` is 0 while it answers."""

    since: float = 0.0
    asked: float = 0.0
    busy: float = 0.0  # when the write that is on its way began

    @property
    def seconds_away(self) -> float:
        """0 while it answers."""
        return time.monotonic() - self.since if self.since else 0.0

    def answered(self) -> None:
        """It has answered in the middle of a long write, which therefore does not hang."""
        self.busy = time.monotonic()

    def try_to(self, write: Callable[[], object]) -> bool:
        """Whether `write` came through. It is not even tried right after a failure."""
        now = time.monotonic()
        if self.since and now - self.asked < RETRY_SECONDS:
            return False
        self.busy = now
        try:
            write()
        except AWAY as error:
            if not self.since:
                self.since = now
                logger.warning("the database is away, the work goes on: %s", str(error).strip())
            self.asked = time.monotonic()
            hang_up()
            return False
        finally:
            self.busy = 0.0
        if self.since:
            logger.warning("the database is back after %.0f s", self.seconds_away)
            self.since = 0.0
        return True

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Meanwhile, cut the connection of this thread under a write that hangs: its server may be silent."""
        over = threading.Event()
        mine: Any = connections["default"]

        def watch() -> None:
            while not over.wait(LISTEN_SECONDS):
                began = self.busy
                if began and time.monotonic() - began > ANSWER_SECONDS:
                    _cut(mine.connection)

        # A file cannot be silent: it is locked or not.
        if mine.vendor == "postgresql":
            threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            over.set()


def _cut(server: Any) -> None:
    """Whoever waits for an answer on this connection learns that there will be none."""
    with (
        contextlib.suppress(OSError, AttributeError, *AWAY),
        socket.socket(fileno=os.dup(server.pgconn.socket)) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)


def hang_up() -> None:
    """Forget a connection that may be broken; the next query makes a new one."""
    if not connection.in_atomic_block:
        with contextlib.suppress(*AWAY):
            connection.close()
