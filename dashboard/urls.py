"""All routes, grouped per object. The address is for people; the name says object and verb."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import path


def health(_request: HttpRequest) -> HttpResponse:
    """Whether the web process answers; public, for launchers and proxies."""
    return HttpResponse("ok", content_type="text/plain")


urlpatterns = [
    path("healthz/", health, name="health"),
]
