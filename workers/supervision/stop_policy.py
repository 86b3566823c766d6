"""The policy for stopping an engine: reason and grace period."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from workers.contract.events import stronger
from workers.supervision.database_outage import Database

# Seconds that an engine may take to stop, by the reason.
GRACE_SECONDS = {"drain": 45.0, "finish": 45.0, "park": 45.0, "cancel": 20.0}
# A longer outage of the database interrupts the work.
OUTAGE_SECONDS = 15 * 60.0


@dataclass(slots=True)
class StopPolicy:
    """The strongest reason to stop the engine, and its grace period. Needs no database."""

    database: Database
    is_draining: Callable[[], bool]
    requested: str = ""  # by the job's row: "" or one of events.STOPS
    reason: str = ""  # the strongest that was sent to the engine
    database_lost: bool = False
    grace_started: float = 0.0  # monotonic; 0 while there is no limit

    def update(self) -> str:
        """Return the reason to send to the engine now, or "" if none is stronger than the one sent before."""
        self.database_lost = self.database_lost or self.database.seconds_away > OUTAGE_SECONDS
        strongest = stronger(self.reason, stronger(self.requested, "drain" if self._must_leave else ""))
        is_new, self.reason = strongest != self.reason, strongest
        if self.reason and not self.grace_unlimited and (is_new or not self.grace_started):
            self.grace_started = time.monotonic()
        return self.reason if is_new else ""

    @property
    def grace_unlimited(self) -> bool:
        """Return whether the engine publishes its best weights and the worker need not leave.

        It may have to load first or to end a long step, and it saves several arms one after the other.
        """
        return self.reason == "finish" and not self._must_leave

    @property
    def grace_expired(self) -> bool:
        """Return whether the grace period is over, for the engine and for its remaining events."""
        is_limited = self.reason and not self.grace_unlimited
        return bool(is_limited) and time.monotonic() - self.grace_started > GRACE_SECONDS[self.reason]

    @property
    def _must_leave(self) -> bool:
        return self.database_lost or self.is_draining()
