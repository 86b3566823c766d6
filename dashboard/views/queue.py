"""Workers and queue: who works, what runs, what waits and in which order. Asks the database only."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST
from django_htmx.http import HttpResponseClientRefresh

from dashboard.gate import Request
from dashboard.models import Job, Role
from dashboard.models import queue as order
from dashboard.models.stopping import StopRefused, stop_job
from dashboard.views.queue_board import board_context, line_of


@require_GET
def index(request: Request) -> HttpResponse:
    """The page around the board."""
    return render(request, "queue/index.html", board_context(request))


@require_GET
def board(request: Request) -> HttpResponse:
    """The board alone, for live refresh."""
    return render(request, "queue/_board.html", board_context(request))


@require_POST
def cancel(request: Request, pk: int) -> HttpResponse:
    """Stop a job of a project in which the caller works; ask again where it has begun meanwhile."""
    job = Job.objects.fetch(request.user, pk, Role.EDITOR)
    back = request.POST.get("next", "")
    # Without its slash it would be looked up as the name of a route.
    is_ours = back.startswith("/") and url_has_allowed_host_and_scheme(back, allowed_hosts=None)
    back = back if is_ours else reverse("queue-index")
    try:
        is_stopped = stop_job(job, request.user, seen_waiting=request.POST.get("seen") == "waiting")
    except StopRefused as refusal:
        line = line_of(request, job.pk)
        context = {"line": line, "job": line.job, "why": str(refusal), "back": back}
        return render(request, "queue/cancel.html", context, status=422)
    if is_stopped:
        messages.success(request, _("%(job)s is being stopped.") % {"job": job})
    else:
        messages.warning(request, _("%(job)s had already ended.") % {"job": job})
    return redirect(back)


@require_POST
def move(request: Request, pk: int) -> HttpResponse:
    """Give a waiting job another place: `step` up or down, or right `before` or `after` another job."""
    job = Job.objects.fetch(request.user, pk, Role.EDITOR)
    wanted = {name: request.POST[name] for name in ("step", "before", "after") if request.POST.get(name)}
    try:
        if wanted.get("step") in ("up", "down"):
            order.step(job, request.user, request.user, up=wanted["step"] == "up")
        else:
            name, target = next(iter(wanted.items()), ("before", ""))
            known = int(target) if target.isascii() and target.isdecimal() and len(target) < 19 else 0
            order.move(job, request.user, request.user, target=known, after=name == "after")
    except order.MoveRefused as refusal:
        messages.warning(request, str(refusal))
        return shown_again(request, fresh=True)
    return shown_again(request)


@require_POST
def prioritise(request: Request, pk: int) -> HttpResponse:
    """Let a waiting job go before or after those of ordinary priority."""
    job = Job.objects.fetch(request.user, pk, Role.MANAGER)
    wanted = {str(value): Job.Priority(value) for value in Job.Priority.values}.get(
        request.POST.get("priority", "")
    )
    try:
        if wanted is None:
            raise order.MoveRefused(_("Choose high, normal or low."))
        order.prioritise(job, wanted, request.user)
    except order.MoveRefused as refusal:
        messages.warning(request, str(refusal))
        return shown_again(request, fresh=True)
    return shown_again(request)


def shown_again(request: Request, *, fresh: bool = False) -> HttpResponse:
    """The board alone where the page's script asked; `fresh` loads the page, which then shows a message."""
    if request.htmx and fresh:
        return HttpResponseClientRefresh()
    if request.htmx:
        return render(request, "queue/_board.html", board_context(request))
    return redirect("queue-index")
