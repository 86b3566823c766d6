"""What the web says when it cannot answer: 503 in words while the database is away, else 500.

Asks the database nothing, so neither the frame of a page nor the caller is known here.
"""

from __future__ import annotations

import sys

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.template import loader
from django.utils.translation import gettext as _

from dashboard.gate import API_PREFIX, api_error

# A locked SQLite file counts as away: it also answers again later.
AWAY = (InterfaceError, OperationalError)
RETRY_SECONDS = 10


def server_error(request: HttpRequest) -> HttpResponse:
    """The answer in place of an exception; Django calls it while it handles that exception."""
    is_call = request.path.startswith(API_PREFIX)
    if is_away(sys.exception()):
        return unavailable(is_call=is_call, may_reload=request.method == "GET")
    if is_call:
        return api_error(500, "internal_error", _("This is a fault of Graftworks. Its log names the cause."))
    return HttpResponse(loader.render_to_string("500.html"), status=500)


def is_away(error: BaseException | None) -> bool:
    """Whether the database was away, perhaps behind another exception that this led to."""
    while error is not None and not isinstance(error, AWAY):
        error = error.__context__
    return error is not None


def unavailable(*, is_call: bool, may_reload: bool) -> HttpResponse:
    """503, and when to try again; a page that was only read tries again by itself."""
    if is_call:
        message = _("The database cannot be reached just now. Running work goes on. Try again in a moment.")
        response: HttpResponse = api_error(503, "unavailable", message)
    else:
        shown = {"reload_seconds": RETRY_SECONDS if may_reload else None}
        response = HttpResponse(loader.render_to_string("503.html", shown), status=503)
    response["Retry-After"] = str(RETRY_SECONDS)
    response["Cache-Control"] = "no-store"
    return response
