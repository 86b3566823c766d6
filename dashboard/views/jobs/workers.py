"""Pausing a worker: it finishes its jobs and claims no more until it is resumed."""

from __future__ import annotations

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from dashboard.gate import Request
from dashboard.models import Job, WorkerNode
from dashboard.models.jobs.worker_node import PAUSE_FORBIDDEN


@require_POST
def pause(request: Request, pk: int) -> HttpResponse:
    """Stop the worker from claiming jobs."""
    node = fetch(request, pk)
    node.pause(request.user)
    messages.success(request, _("%(worker)s is paused and claims no new jobs.") % {"worker": node})
    return redirect("queue-index")


@require_POST
def resume(request: Request, pk: int) -> HttpResponse:
    """Let the worker claim jobs again."""
    node = fetch(request, pk)
    node.resume()
    Job.objects.wake_idle(node.queue)
    messages.success(request, _("%(worker)s claims jobs again.") % {"worker": node})
    return redirect("queue-index")


def fetch(request: Request, pk: int) -> WorkerNode:
    """Return the worker if the user may pause it."""
    if not WorkerNode.objects.may_be_paused_by(request.user, request.user):
        raise PermissionDenied(PAUSE_FORBIDDEN)
    return get_object_or_404(WorkerNode, pk=pk, kind=WorkerNode.Kind.WORKER)
