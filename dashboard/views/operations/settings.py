"""The settings page: links to base models, API tokens, storage, health and the password."""

from __future__ import annotations

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from dashboard.gate import Request


@require_GET
def index(request: Request) -> HttpResponse:
    return render(request, "operations/settings/index.html")
