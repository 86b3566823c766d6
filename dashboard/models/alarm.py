"""What the frame around every page says while something is wrong that people there would wonder about.

Read from the rows of workers and dispatcher in one query. The whole story is on the page Settings, Health.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import DatabaseError
from django.db.models.functions import Now
from django.utils.translation import gettext as _

from dashboard.models import old_tables
from dashboard.models.worker_node import SILENT_AFTER, WorkerNode

# Less than this, and pages ask for a clean-up.
LOW_BYTES = 2 * 1024**3
SKEW_SECONDS = 5.0
# A broker that is started again is back sooner.
BROKER_PATIENCE = timedelta(seconds=5)


@dataclass(frozen=True)
class Alarm:
    """One sentence, and for those who can mend it the page to go to."""

    check: str
    text: str
    route: str
    label: str


def alarms(*, keeper: bool) -> list[Alarm]:
    """What to say now: everybody hears of the queue, managers and superusers also of disk and clocks."""
    try:
        nodes = list(WorkerNode.objects.annotate(seen_at=Now()))
    except DatabaseError as error:
        if not old_tables.is_due_to_old_tables(error):
            raise
        # The page that says how to mend it has this frame as well.
        return [Alarm("tables", str(old_tables.TEXT), "health-index", _("How to mend it"))]
    alive = [
        node for node in nodes if node.stopped_at is None and now(node) - node.heartbeat_at < SILENT_AFTER
    ]
    found = queue_alarms(nodes, alive)
    if keeper:
        found += disk_alarms(alive) + clock_alarms(alive)
    return found


def now(node: WorkerNode) -> datetime:
    """The database's clock, when it was asked."""
    moment: datetime = node.seen_at  # type: ignore[attr-defined]
    return moment


def queue_alarms(nodes: list[WorkerNode], alive: list[WorkerNode]) -> list[Alarm]:
    """Nobody wakes workers: the broker is silent, or every dispatcher that was there is gone."""
    dispatchers = [node for node in nodes if node.kind == WorkerNode.Kind.DISPATCHER]
    there = [node for node in dispatchers if node in alive]
    unheard = [node for node in there if is_unheard(node)]
    if (not dispatchers or there) and not unheard:
        return []
    text = _("The queue is unavailable at the moment. Your jobs are safe: they wait and start by themselves.")
    return [Alarm("queue", text, "health-index", _("What is wrong"))]


def is_unheard(dispatcher: WorkerNode) -> bool:
    """Whether the broker has not answered this leader for a while."""
    since, leads_until, seen = dispatcher.broker_silent_since, dispatcher.leads_until, now(dispatcher)
    return bool(since and leads_until and leads_until > seen and seen - since > BROKER_PATIENCE)


def disk_alarms(alive: list[WorkerNode]) -> list[Alarm]:
    """The data folder's disk, as the dispatcher saw it last."""
    free = min((node.free_bytes for node in alive if node.free_bytes is not None), default=LOW_BYTES)
    if free >= LOW_BYTES:
        return []
    text = _("The disk is nearly full: %(free).1f GB are free. Runs fail when it is full.")
    return [Alarm("disk", text % {"free": free / 10**9}, "storage-index", _("See what takes the space"))]


def clock_alarms(alive: list[WorkerNode]) -> list[Alarm]:
    """Leases run on the database's clock, so this is about what people read."""
    wrong = [node for node in alive if abs(node.clock_ahead or 0.0) > SKEW_SECONDS]
    if not wrong:
        return []
    text = _("The clock of %(name)s differs from the database's, so times in logs are wrong. Jobs are safe.")
    return [Alarm("clocks", text % {"name": wrong[0]}, "health-index", _("How to set it right"))]
