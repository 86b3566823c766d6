"""Errors below /v1 in OpenAI's format, whoever refuses: the gate, Django or an endpoint.

Their clients raise a typed exception for each status, and try 408, 409, 429 and 5xx again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse

PREFIX = "/v1/"
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def middleware(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Translate the errors of every layer below; only the compression stands above it."""

    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        is_error = response.status_code >= 400 and request.path.startswith(PREFIX)
        return translate(response) if is_error else response

    return answer


def translate(response: HttpResponse) -> HttpResponse:
    """Return an error of the API with its headers in OpenAI's format."""
    problem = _problem(response)
    # Their API has no 422.
    status = 400 if response.status_code == 422 else response.status_code
    translated = JsonResponse({"error": error_object(status, **problem)}, status=status)
    for name, value in response.items():
        if name not in ("Content-Type", "Content-Length"):
            translated[name] = value
    translated.cookies = response.cookies
    # The same request would meet the same conflict.
    if status == 409 or (status == 503 and "Retry-After" not in translated):
        translated["x-should-retry"] = "false"
    return translated


def error_object(status: int, code: str, message: str, field: str | None = None) -> dict[str, Any]:
    """Return the value of `error`."""
    kind = "server_error" if status >= 500 else TYPES.get(status, "invalid_request_error")
    return {"message": message, "type": kind, "param": field, "code": code}


def _problem(response: HttpResponse) -> dict[str, Any]:
    """Return code, message and field of an error of the API."""
    try:
        error = json.loads(response.content)["error"]
        return {"code": error["code"], "message": error["message"], "field": error["field"]}
    except (ValueError, KeyError, TypeError):
        return {"code": "error", "message": response.reason_phrase}
