"""Settings: the way to base models, API tokens, the API's documentation and one's password."""

from __future__ import annotations

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from dashboard.gate import Request


@require_GET
def index(request: Request) -> HttpResponse:
    """One link per thing that can be set."""
    return render(request, "operations/settings/index.html")
