"""Workers and dispatchers, as they last reported themselves."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db.models import BooleanField, Case, Q, Value, When
from ninja import Router, Schema
from ninja.pagination import paginate

from dashboard.api.access import Call
from dashboard.api.paging import Newest, Rows
from dashboard.api.refusals import READING
from dashboard.models import WorkerNode

router = Router()


class WorkerOut(Schema):
    """A node of the installation. `alive` is whether it was heard from lately."""

    id: int
    name: str
    kind: str
    queue: str | None
    host: str
    device: str | None
    memory_bytes: int
    alive: bool
    draining: bool
    started_at: datetime
    heartbeat_at: datetime


def facts(node: Any) -> dict[str, Any]:
    """What a list says of a node."""
    return {
        "id": node.pk,
        "name": node.name,
        "kind": node.kind,
        "queue": node.queue or None,
        "host": node.host,
        "device": node.device or None,
        "memory_bytes": node.memory_bytes,
        "alive": node.is_alive,
        "draining": node.draining,
        "started_at": node.started_at,
        "heartbeat_at": node.heartbeat_at,
    }


@router.get("", response={200: list[WorkerOut], **READING})
@paginate(Newest)
def index(request: Call) -> Rows:
    """All nodes that have ever reported themselves."""
    alive = Q(pk__in=WorkerNode.objects.alive().values("pk"))
    nodes = WorkerNode.objects.annotate(
        is_alive=Case(When(alive, then=Value(True)), default=Value(False), output_field=BooleanField())
    )
    return Rows(nodes, facts)
