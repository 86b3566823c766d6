"""Alerts at the top of every page while the queue, the disk or a clock has a problem.

Read from the rows of workers and dispatchers in one query. Settings, Health has the details.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import DatabaseError
from django.db.models.functions import Now
from django.utils.translation import gettext as _

from dashboard.models.jobs.worker_node import SILENT_AFTER, WorkerNode
from dashboard.models.operations import outdated_tables

# Less free space than this shows an alert.
LOW_BYTES = 2 * 1024**3
SKEW_SECONDS = 5.0
# A broker that is restarted answers again within this time.
BROKER_PATIENCE = timedelta(seconds=5)


@dataclass(frozen=True)
class Alert:
    """One sentence, and the page where an administrator can act on it."""

    code: str
    text: str
    route: str
    label: str


def current_alerts(*, administrator: bool) -> list[Alert]:
    """Return the alerts for a page. Only managers and superusers see those about disk and clocks."""
    try:
        nodes = list(WorkerNode.objects.annotate(seen_at=Now()))
    except DatabaseError as error:
        if not outdated_tables.is_due_to_old_tables(error):
            raise
        # The health page, which explains the fix, shows this frame too.
        return [Alert("tables", str(outdated_tables.TEXT), "health-index", _("How to fix it"))]
    alive = [
        node
        for node in nodes
        if node.stopped_at is None and database_time(node) - node.heartbeat_at < SILENT_AFTER
    ]
    alerts = queue_alerts(nodes, alive)
    return alerts + disk_alerts(alive) + clock_alerts(alive) if administrator else alerts


def database_time(node: WorkerNode) -> datetime:
    """Return the database's clock at the time of the query."""
    moment: datetime = node.seen_at  # type: ignore[attr-defined]
    return moment


def queue_alerts(nodes: list[WorkerNode], alive: list[WorkerNode]) -> list[Alert]:
    """Alert when the broker is silent or no dispatcher is left. Before the first dispatcher there is none."""
    dispatchers = [node for node in nodes if node.kind == WorkerNode.Kind.DISPATCHER]
    alive_dispatchers = [node for node in dispatchers if node in alive]
    lacks_dispatcher = bool(dispatchers) and not alive_dispatchers
    if not lacks_dispatcher and not any(has_lost_broker(node) for node in alive_dispatchers):
        return []
    text = _("The queue is unavailable at the moment. Your jobs are saved and start when it is back.")
    return [Alert("queue", text, "health-index", _("Details"))]


def has_lost_broker(dispatcher: WorkerNode) -> bool:
    """Return whether the broker has not answered this leading dispatcher for BROKER_PATIENCE."""
    since, leads_until, now = (
        dispatcher.broker_silent_since,
        dispatcher.leads_until,
        database_time(dispatcher),
    )
    return bool(since and leads_until and leads_until > now and now - since > BROKER_PATIENCE)


def disk_alerts(alive: list[WorkerNode]) -> list[Alert]:
    """Alert when the data folder's disk is nearly full, as last measured by a dispatcher."""
    free = min((node.free_bytes for node in alive if node.free_bytes is not None), default=LOW_BYTES)
    if free >= LOW_BYTES:
        return []
    text = _("The disk is almost full: %(free).1f GB free. Runs fail when no space is left.")
    return [Alert("disk", text % {"free": free / 10**9}, "storage-index", _("See storage use"))]


def clock_alerts(alive: list[WorkerNode]) -> list[Alert]:
    """Alert about wrong clocks. Leases use the database's clock, so only displayed times are off."""
    wrong = [node for node in alive if abs(node.clock_ahead or 0.0) > SKEW_SECONDS]
    if not wrong:
        return []
    text = _("The clock of %(name)s differs from the database's, so times in logs are wrong. Jobs are safe.")
    return [Alert("clocks", text % {"name": wrong[0]}, "health-index", _("How to fix it"))]
