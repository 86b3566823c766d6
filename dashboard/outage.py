"""Error responses: 400 for unreadable requests, 503 while the database is unreachable or outdated, else 500.

Does not use the database, so these pages have no navigation.
"""

from __future__ import annotations

import sys

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.template import loader
from django.urls import reverse
from django.utils.translation import gettext as _

from dashboard.gate import API_PREFIXES, api_error
from dashboard.models.operations.health_check import manage_command
from dashboard.models.operations.outdated_tables import TEXT, is_due_to_old_tables

# A locked SQLite file counts as unreachable: it also recovers later.
DATABASE_ERRORS = (InterfaceError, OperationalError)
RETRY_SECONDS = 10


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Return the response for a request that cannot be read; Django's handler400."""
    if request.path.startswith(API_PREFIXES):
        message = _("The request cannot be read. See the documentation for its format.")
        return api_error(400, "unreadable", message)
    return HttpResponse(loader.render_to_string("400.html"), status=400)


def server_error(request: HttpRequest) -> HttpResponse:
    """Return the response for an unhandled exception; Django's handler500."""
    is_call = request.path.startswith(API_PREFIXES)
    if expected := outage(sys.exception(), is_call=is_call, may_reload=request.method == "GET"):
        return expected
    if is_call:
        return api_error(500, "internal_error", _("Internal error. The log of Graftworks shows the cause."))
    return HttpResponse(loader.render_to_string("500.html"), status=500)


def outage(error: BaseException | None, *, is_call: bool, may_reload: bool = False) -> HttpResponse | None:
    """Return the response if the database caused the error, else None."""
    # Checked first, because SQLite raises the same class of error for both.
    if is_due_to_old_tables(error):
        return outdated(is_call=is_call)
    return unavailable(is_call=is_call, may_reload=may_reload) if is_unreachable(error) else None


def is_unreachable(error: BaseException | None) -> bool:
    """Return whether an unreachable database caused the error, directly or through its context."""
    while error is not None and not isinstance(error, DATABASE_ERRORS):
        error = error.__context__
    return error is not None


def outdated(*, is_call: bool) -> HttpResponse:
    """Return 503 without Retry-After, because only a migration helps."""
    if is_call:
        response: HttpResponse = api_error(503, "tables_outdated", str(TEXT))
    else:
        context = {"text": TEXT, "command": manage_command("migrate"), "health": reverse("health-index")}
        response = HttpResponse(loader.render_to_string("outdated.html", context), status=503)
    response["Cache-Control"] = "no-store"
    return response


def unavailable(*, is_call: bool, may_reload: bool) -> HttpResponse:
    """Return 503 with Retry-After. A page requested by GET reloads automatically."""
    if is_call:
        message = _("The database cannot be reached at the moment. Running jobs continue. Try again shortly.")
        response: HttpResponse = api_error(503, "unavailable", message)
    else:
        context = {"reload_seconds": RETRY_SECONDS if may_reload else None}
        response = HttpResponse(loader.render_to_string("503.html", context), status=503)
    response["Retry-After"] = str(RETRY_SECONDS)
    response["Cache-Control"] = "no-store"
    return response
