"""Errors of the API: {"error": {code, message, field}} for every exception."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
    TooManyFieldsSent,
    TooManyFilesSent,
)
from django.core.signals import got_request_exception
from django.db import IntegrityError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.utils.translation import gettext as _
from ninja import NinjaAPI, Schema
from ninja.errors import AuthenticationError, HttpError, Throttled, ValidationError
from pydantic import ConfigDict

from dashboard import openai_errors
from dashboard.gate import api_error
from dashboard.models import OverBudget
from dashboard.outage import bad_request, outage
from dashboard.streams import LaterResponse
from workers.contract.errors import SpecError, TargetError
from workers.contract.hyperparameters import Hyperparameters

log = logging.getLogger(__name__)
HYPERPARAMETERS = frozenset({"length", *Hyperparameters.__dataclass_fields__})


class Problem(Schema):
    """The error."""

    code: str
    message: str
    field: str | None


class Refused(Schema):
    """The body of every response with a status of 400 or above."""

    error: Problem


class Nothing(Schema):
    """The body of a request without parameters: an empty object or nothing."""

    model_config = ConfigDict(extra="forbid")


READING = {frozenset({401, 403, 404, 409, 422, 429}): Refused}
WRITING = {frozenset({400, 401, 403, 404, 409, 413, 422, 429}): Refused}


class Refusal(Exception):
    """Ends the request with this error."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.field = status, code, message, field
        self.headers = headers or {}


def invalid(field: str | None, message: str) -> Refusal:
    """Return the error for an invalid value."""
    return Refusal(422, "invalid", message, field)


def unknown(field: str, noun: str) -> Refusal:
    """Return the error for an id or slug that the caller cannot see."""
    return Refusal(404, "not_found", _("There is no such %(noun)s in this project.") % {"noun": noun}, field)


def refuse_others(given: Sequence[str], known: Sequence[str]) -> None:
    """Refuse unknown query parameters."""
    for name in given:
        if name not in known:
            raise invalid(name, _("`%(name)s` is not a known field.") % {"name": name[:100]})


def install(api: NinjaAPI) -> None:
    """Register a handler for every exception."""
    for kind, handler in HANDLERS.items():
        api.add_exception_handler(kind, handler)


def later(request: HttpRequest, make: Callable[[], Awaitable[HttpResponseBase]]) -> LaterResponse:
    """Return a response that waits without a thread; its exceptions are answered as those of an endpoint."""

    async def answer() -> HttpResponseBase:
        try:
            return await make()
        except Exception as error:
            handler = next(HANDLERS[kind] for kind in type(error).__mro__ if kind in HANDLERS)
            refusal = handler(request, error)
        return openai_errors.translate(refusal) if request.path.startswith(openai_errors.PREFIX) else refusal

    return LaterResponse(answer)


def missing(_request: HttpRequest) -> HttpResponse:
    """Answer addresses below /api/v1/ that have no route."""
    return api_error(
        404,
        "not_found",
        _("No endpoint has this address. Addresses do not end with a slash; /api/v1/docs lists them all."),
    )


def method_not_allowed(methods: Iterable[str]) -> HttpResponse:
    """Answer an unsupported method."""
    allowed = ", ".join(sorted(methods))
    answer = api_error(405, "method_not_allowed", _("This endpoint supports %s.") % allowed)
    answer.headers["Allow"] = allowed
    return answer


def _invalid(_request: HttpRequest, error: ValidationError) -> HttpResponse:
    first = error.errors[0]
    source, *path = first["loc"]
    # The first part of a body's path is the name of the Python parameter.
    field = ".".join(str(part) for part in (path[1:] if source == "body" else path))
    return api_error(422, "invalid", _sentence(first, field), field or None)


def _sentence(error: dict[str, Any], field: str) -> str:
    kind, context = error["type"], error.get("ctx", {})
    name = {"field": field or _("The body"), **context}
    if kind == "missing":
        return _("`%(field)s` is missing.") % name if field else _("Send a JSON object.")
    if kind == "extra_forbidden":
        return _("`%(field)s` is not a known field.") % name
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    if kind.startswith("int_"):
        return _("`%(field)s` must be a whole number.") % name
    if kind.startswith(("float_", "finite_")):
        return _("`%(field)s` must be a number.") % name
    if kind.startswith("bool_"):
        return _("`%(field)s` must be true or false.") % name
    if kind == "string_too_long":
        return _("`%(field)s` is longer than %(max_length)s characters.") % name
    if kind == "string_too_short":
        return _("`%(field)s` must not be empty.") % name
    if kind.startswith("string_"):
        return _("`%(field)s` must be text.") % name
    if kind == "greater_than_equal":
        return _("`%(field)s` must be at least %(ge)s.") % name
    if kind == "less_than_equal":
        return _("`%(field)s` must be at most %(le)s.") % name
    if kind in ("literal_error", "enum"):
        return _("`%(field)s` must be %(expected)s.") % name
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return _("`%(field)s` must be a JSON object.") % name if field else _("Send a JSON object.")
    return f"`{field}`: {error['msg']}."


def _spec(_request: HttpRequest, error: SpecError) -> HttpResponse:
    field = "target_module_config" if error.field == "target_modules" else error.field
    if field in ("dataset", "base_model"):
        return api_error(409, "not_ready", error.message, field)
    name = f"hyperparameters.{field}" if field in HYPERPARAMETERS else field
    return api_error(422, "invalid", error.message, name or None)


def _over_budget(_request: HttpRequest, error: OverBudget) -> HttpResponse:
    return api_error(409, "over_budget", str(error))


def _target(_request: HttpRequest, error: TargetError) -> HttpResponse:
    # Only an outdated census raises this before a run starts.
    return api_error(409, "not_ready", error.message, "base_model")


def _not_found(_request: HttpRequest, _error: Http404) -> HttpResponse:
    return api_error(404, "not_found", _("There is no such object in this project."))


def _forbidden(_request: HttpRequest, error: PermissionDenied) -> HttpResponse:
    return api_error(403, "forbidden", str(error) or _("Access denied."))


def _unauthorized(_request: HttpRequest, _error: AuthenticationError) -> HttpResponse:
    return api_error(401, "unauthorized", _("Send a valid API token: Authorization: Bearer gw_…"))


def _throttled(_request: HttpRequest, _error: Throttled) -> HttpResponse:
    message = _("The token has reached its rate limit. Wait for the number of seconds in Retry-After.")
    return api_error(429, "too_many_requests", message)


def _too_large(_request: HttpRequest, _error: Exception) -> HttpResponse:
    return api_error(413, "too_large", _("The request is larger than this endpoint accepts."))


def _unreadable(request: HttpRequest, error: Exception) -> HttpResponse:
    if isinstance(error.__cause__, BadRequest | MultiPartParserError):
        return bad_request(request, error)
    return api_error(
        422, "unreadable", _("The request body cannot be read. See the documentation for its format.")
    )


def _conflict(_request: HttpRequest, error: IntegrityError) -> HttpResponse:
    log.warning("An API request violated a database constraint: %s", error)
    return api_error(
        409, "conflict", _("Another request changed this object at the same time. Reload it and try again.")
    )


def _internal_error(request: HttpRequest, error: Exception) -> HttpResponse:
    if expected := outage(error, is_call=True):
        log.warning("The database cannot serve an API request: %s", error)
        return expected
    log.error("An API request failed", exc_info=error)
    got_request_exception.send(sender=NinjaAPI, request=request)
    return api_error(500, "internal_error", _("Internal error. The log of Graftworks shows the cause."))


def _refused(_request: HttpRequest, refusal: Refusal) -> HttpResponse:
    answer = api_error(refusal.status, refusal.code, refusal.message, refusal.field)
    for name, value in refusal.headers.items():
        answer[name] = value
    return answer


# The most specific base class of an exception decides.
HANDLERS: dict[type[Exception], Callable[[HttpRequest, Any], HttpResponse]] = {
    Refusal: _refused,
    ValidationError: _invalid,
    SpecError: _spec,
    TargetError: _target,
    OverBudget: _over_budget,
    Http404: _not_found,
    PermissionDenied: _forbidden,
    AuthenticationError: _unauthorized,
    Throttled: _throttled,
    HttpError: _unreadable,
    IntegrityError: _conflict,
    RequestDataTooBig: _too_large,
    TooManyFieldsSent: _too_large,
    TooManyFilesSent: _too_large,
    SuspiciousOperation: _unreadable,
    BadRequest: bad_request,
    MultiPartParserError: bad_request,
    UnreadablePostError: _unreadable,
    Exception: _internal_error,
}
