"""Workers and dispatchers, as they last reported themselves, and pausing a worker."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db.models import BooleanField, Case, Q, QuerySet, Value, When
from django.shortcuts import get_object_or_404
from ninja import Router, Schema
from ninja.pagination import paginate

from dashboard.api.access import Call
from dashboard.api.paging import Newest, Rows
from dashboard.api.refusals import READING, WRITING, Nothing
from dashboard.models import Job, WorkerNode
from dashboard.models.jobs.worker_node import PAUSE_FORBIDDEN

router = Router()


class WorkerOut(Schema):
    """A node of the installation. `alive` is whether it was heard from lately; `gpu` is the number of its
    GPU on that host; a `paused` worker ends what it has and takes nothing more."""

    id: int
    name: str
    kind: str
    queue: str | None
    host: str
    device: str | None
    gpu: int | None
    memory_bytes: int
    processes: int
    alive: bool
    draining: bool
    paused: bool
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
        "gpu": node.gpu,
        "memory_bytes": node.memory_bytes,
        "processes": node.processes,
        "alive": node.is_alive,
        "draining": node.draining,
        "paused": node.paused_at is not None,
        "started_at": node.started_at,
        "heartbeat_at": node.heartbeat_at,
    }


@router.get("", response={200: list[WorkerOut], **READING})
@paginate(Newest)
def index(request: Call) -> Rows:
    """All nodes that have ever reported themselves."""
    return Rows(with_life(), facts)


@router.post("/{int:pk}/pause", response={200: WorkerOut, **WRITING})
def pause(request: Call, pk: int, payload: Nothing | None = None) -> dict[str, Any]:
    """Let it end what it has and take nothing more. For superusers, and for managers of all projects."""
    fetch(request, pk).pause(request.auth.user)
    return facts(with_life().get(pk=pk))


@router.post("/{int:pk}/resume", response={200: WorkerOut, **WRITING})
def resume(request: Call, pk: int, payload: Nothing | None = None) -> dict[str, Any]:
    """Let it take jobs again."""
    node = fetch(request, pk)
    node.resume()
    Job.objects.wake_idle(node.queue)
    return facts(with_life().get(pk=pk))


def fetch(request: Call, pk: int) -> WorkerNode:
    """The worker, for a caller who may pause it."""
    if not WorkerNode.objects.may_be_paused_by(request.auth.user, request.auth):
        raise PermissionDenied(PAUSE_FORBIDDEN)
    return get_object_or_404(WorkerNode, pk=pk, kind=WorkerNode.Kind.WORKER)


def with_life() -> QuerySet[Any]:
    """Nodes with whether they were heard from lately."""
    alive = Q(pk__in=WorkerNode.objects.alive().values("pk"))
    return WorkerNode.objects.annotate(
        is_alive=Case(When(alive, then=Value(True)), default=Value(False), output_field=BooleanField())
    )
