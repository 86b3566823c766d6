"""What the web says when it cannot answer: 503 in words while the database is away or its tables are older
than the program, else 500.

Asks the database nothing, so neither the frame of a page nor the caller is known here.
"""

from __future__ import annotations

import sys

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.template import loader
from django.urls import reverse
from django.utils.translation import gettext as _

from dashboard.gate import API_PREFIX, api_error
from dashboard.models.finding import manage_command
from dashboard.models.old_tables import TEXT, is_due_to_old_tables

# A locked SQLite file counts as away: it also answers again later.
AWAY = (InterfaceError, OperationalError)
RETRY_SECONDS = 10


def server_error(request: HttpRequest) -> HttpResponse:
    """The answer in place of an exception; Django calls it while it handles that exception."""
    is_call = request.path.startswith(API_PREFIX)
    if expected := outage(sys.exception(), is_call=is_call, may_reload=request.method == "GET"):
        return expected
    if is_call:
        return api_error(500, "internal_error", _("Internal error. The log of Graftworks shows the cause."))
    return HttpResponse(loader.render_to_string("500.html"), status=500)


def outage(error: BaseException | None, *, is_call: bool, may_reload: bool = False) -> HttpResponse | None:
    """What to answer where the database is the reason; None for every other one."""
    # First, because SQLite has the same class of error for both.
    if is_due_to_old_tables(error):
        return outdated(is_call=is_call)
    return unavailable(is_call=is_call, may_reload=may_reload) if is_away(error) else None


def is_away(error: BaseException | None) -> bool:
    """Whether the database was away, perhaps behind another exception that this led to."""
    while error is not None and not isinstance(error, AWAY):
        error = error.__context__
    return error is not None


def outdated(*, is_call: bool) -> HttpResponse:
    """503 until somebody has brought the tables up to date: waiting alone does not help."""
    if is_call:
        response: HttpResponse = api_error(503, "tables_outdated", str(TEXT))
    else:
        shown = {"text": TEXT, "command": manage_command("migrate"), "health": reverse("health-index")}
        response = HttpResponse(loader.render_to_string("outdated.html", shown), status=503)
    response["Cache-Control"] = "no-store"
    return response


def unavailable(*, is_call: bool, may_reload: bool) -> HttpResponse:
    """503, and when to try again; a page that was only read tries again by itself."""
    if is_call:
        message = _("The database cannot be reached at the moment. Running jobs continue. Try again shortly.")
        response: HttpResponse = api_error(503, "unavailable", message)
    else:
        shown = {"reload_seconds": RETRY_SECONDS if may_reload else None}
        response = HttpResponse(loader.render_to_string("503.html", shown), status=503)
    response["Retry-After"] = str(RETRY_SECONDS)
    response["Cache-Control"] = "no-store"
    return response
