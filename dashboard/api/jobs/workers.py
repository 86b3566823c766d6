"""Workers and dispatchers by their last heartbeat, and pausing a worker."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import PermissionDenied
from django.db.models import BooleanField, Case, Q, QuerySet, Value, When
from django.shortcuts import get_object_or_404
from ninja import Router, Schema

from dashboard.api.access import Call
from dashboard.api.answer import Time
from dashboard.api.pagination import Newest, Rows, listing
from dashboard.api.refusals import READING, WRITING, Nothing
from dashboard.models import Job, WorkerNode
from dashboard.models.jobs.worker_node import PAUSE_FORBIDDEN

router = Router()


class WorkerOut(Schema):
    """A worker or dispatcher. `alive`: it sent a heartbeat recently. `gpu`: the number of its GPU on that
    host. `paused`: it finishes its jobs and claims no more."""

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
    started_at: Time
    heartbeat_at: Time


def serialize_node(node: Any) -> dict[str, Any]:
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
@listing(Newest)
def index(request: Call) -> Rows:
    """List all nodes, also those that have stopped."""
    return Rows(nodes_with_alive(), serialize_node)


@router.post("/{int:pk}/pause", response={200: WorkerOut, **WRITING})
def pause(request: Call, pk: int, payload: Nothing | None = None) -> dict[str, Any]:
    """Let the worker finish its jobs and claim no more. For superusers and managers of all projects."""
    fetch(request, pk).pause(request.auth.user)
    return serialize_node(nodes_with_alive().get(pk=pk))


@router.post("/{int:pk}/resume", response={200: WorkerOut, **WRITING})
def resume(request: Call, pk: int, payload: Nothing | None = None) -> dict[str, Any]:
    """Let the worker claim jobs again."""
    node = fetch(request, pk)
    node.resume()
    Job.objects.wake_idle(node.queue)
    return serialize_node(nodes_with_alive().get(pk=pk))


def fetch(request: Call, pk: int) -> WorkerNode:
    """Return the worker if the caller may pause it."""
    if not WorkerNode.objects.may_be_paused_by(request.auth.user, request.auth):
        raise PermissionDenied(PAUSE_FORBIDDEN)
    return get_object_or_404(WorkerNode, pk=pk, kind=WorkerNode.Kind.WORKER)


def nodes_with_alive() -> QuerySet[Any]:
    """Annotate `is_alive`: a recent heartbeat."""
    alive = Q(pk__in=WorkerNode.objects.alive().values("pk"))
    return WorkerNode.objects.annotate(
        is_alive=Case(When(alive, then=Value(True)), default=Value(False), output_field=BooleanField())
    )
