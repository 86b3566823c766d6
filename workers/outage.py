"""Whether the database answers a worker, and for how long it has not.

Every write of an attempt goes through `Database.try_to`: one that fails because the database is away is asked
for again later, so it must be repeatable. Knows nothing of jobs.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from django.db import InterfaceError, OperationalError, connection

logger = logging.getLogger(__name__)

# A locked SQLite file counts as away: it also answers again later.
AWAY = (InterfaceError, OperationalError)
RETRY_SECONDS = 1.0


@dataclass(slots=True)
class Database:
    """The way to the database, in monotonic seconds; `since` is 0 while it answers."""

    since: float = 0.0
    asked: float = 0.0

    @property
    def seconds_away(self) -> float:
        """0 while it answers."""
        return time.monotonic() - self.since if self.since else 0.0

    def try_to(self, write: Callable[[], object]) -> bool:
        """Whether `write` came through. It is not even tried right after a failure."""
        now = time.monotonic()
        if self.since and now - self.asked < RETRY_SECONDS:
            return False
        try:
            write()
        except AWAY as error:
            if not self.since:
                self.since = now
                logger.warning("the database is away, the work goes on: %s", str(error).strip())
            self.asked = time.monotonic()
            hang_up()
            return False
        if self.since:
            logger.warning("the database is back after %.0f s", self.seconds_away)
            self.since = 0.0
        return True


def hang_up() -> None:
    """Forget a connection that may be broken; the next query makes a new one."""
    if not connection.in_atomic_block:
        with contextlib.suppress(*AWAY):
            connection.close()
