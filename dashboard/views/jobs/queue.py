"""The page "Workers and queue": running, waiting and ended jobs, and the workers. Reads the database only."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django_htmx.http import HttpResponseClientRefresh

from dashboard.gate import Request, is_local
from dashboard.models import IllegalMove, Job, Role
from dashboard.models.jobs.stop import StopRefused, stop_job
from dashboard.presenters.queue_board import board_context, row_of


@require_GET
def index(request: Request) -> HttpResponse:
    """Show the page around the board."""
    return render(request, "jobs/queue/index.html", board_context(request))


@require_GET
def board(request: Request) -> HttpResponse:
    """Show the board alone, for live refresh."""
    return render(request, "jobs/queue/_board.html", board_context(request))


@require_http_methods(["GET", "POST"])
def cancel(request: Request, pk: int) -> HttpResponse:
    """Ask before a job is stopped, and stop it; ask again if it started since the question."""
    job = Job.objects.fetch_to_stop(request.user, pk)
    back = request.POST.get("next", "")
    back = back if is_local(back) else reverse("queue-index")
    if request.method == "GET":
        # The queue's page shows the question in a dialog.
        template = "jobs/queue/_stop_question.html" if request.htmx else "jobs/queue/cancel.html"
        return render(request, template, {"row": row_of(request, job.pk), "back": back})
    try:
        is_stopped = stop_job(job, request.user, seen_waiting=request.POST.get("seen") == "waiting")
    except StopRefused as refusal:
        context = {"row": row_of(request, job.pk), "reason": str(refusal), "back": back}
        return render(request, "jobs/queue/cancel.html", context, status=422)
    if is_stopped:
        messages.success(request, _("%(job)s is being stopped.") % {"job": job})
    else:
        messages.warning(request, _("%(job)s had already ended.") % {"job": job})
    return redirect(back)


@require_POST
def prioritise(request: Request, pk: int) -> HttpResponse:
    """Change the priority of a waiting job; managers only."""
    job = Job.objects.fetch(request.user, pk, Role.MANAGER)
    priority = {str(value): Job.Priority(value) for value in Job.Priority.values}.get(
        request.POST.get("priority", "")
    )
    try:
        if priority is None:
            raise IllegalMove(_("Choose high, normal or low."))
        job.set_priority(priority, request.user)
    except IllegalMove as refusal:
        messages.warning(request, str(refusal))
        # Only a full page shows the message.
        return HttpResponseClientRefresh() if request.htmx else redirect("queue-index")
    if request.htmx:
        return render(request, "jobs/queue/_board.html", board_context(request))
    return redirect("queue-index")
