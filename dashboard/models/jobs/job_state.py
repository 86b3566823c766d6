"""The states of a job and the transitions between them. Knows nothing of rows."""

from __future__ import annotations

from datetime import timedelta

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

# A worker that does not renew its lease for this long loses the job.
LEASE = timedelta(seconds=90)


class IllegalMove(Exception):
    """The job is not in a state from which this event may happen, or another attempt has taken over."""


def db_now(after: timedelta = timedelta()) -> models.expressions.Combinable:
    """Return the database's clock plus `after`; leases must not depend on a worker's clock."""
    return models.ExpressionWrapper(Now() + after, output_field=models.DateTimeField()) if after else Now()


class State(models.TextChoices):
    """The state of a job. Pages show these labels, except for kinds with labels of their own."""

    QUEUED = "queued", _("Waiting")
    STARTING = "starting", _("Starting")
    RUNNING = "running", _("Running")
    FINALIZING = "finalizing", _("Saving")
    CANCELLING = "cancelling", _("Stopping")
    INTERRUPTED = "interrupted", _("Interrupted, will continue by itself")
    SUCCEEDED = "succeeded", _("Finished")
    FAILED = "failed", _("Failed")
    CANCELLED = "cancelled", _("Stopped")


WAITING = (State.QUEUED, State.INTERRUPTED)
LIVE = (State.STARTING, State.RUNNING, State.FINALIZING, State.CANCELLING)
TERMINAL = (State.SUCCEEDED, State.FAILED, State.CANCELLED)

# event -> (source states, target state). No other transition exists.
MOVES: dict[str, tuple[tuple[State, ...], State]] = {
    "claim": ((State.QUEUED,), State.STARTING),
    "progress": ((State.STARTING,), State.RUNNING),
    "work_done": ((State.RUNNING,), State.FINALIZING),
    "succeed": ((State.FINALIZING,), State.SUCCEEDED),
    "fail": ((State.STARTING, State.RUNNING, State.FINALIZING), State.FAILED),
    "interrupt": ((State.STARTING, State.RUNNING, State.FINALIZING), State.INTERRUPTED),
    "cancel_waiting": (WAITING, State.CANCELLED),
    "cancel": ((State.STARTING, State.RUNNING, State.FINALIZING), State.CANCELLING),
    "stopped": ((State.CANCELLING,), State.CANCELLED),
    "requeue": ((State.INTERRUPTED,), State.QUEUED),
    "give_up": ((State.INTERRUPTED,), State.FAILED),
    "resume": ((State.FAILED, State.CANCELLED), State.QUEUED),
}
