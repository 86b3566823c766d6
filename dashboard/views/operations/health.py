"""Settings, Health: the checks of this installation. Does not contact the broker."""

from __future__ import annotations

from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from dashboard.gate import Request
from dashboard.models import Role
from dashboard.models.operations.health import run_health_checks
from dashboard.models.operations.health_check import Level, summarize


@require_GET
def index(request: Request) -> HttpResponse:
    """Show the checks to managers, and to superusers with or without a project."""
    if not request.user.is_superuser:
        if not request.project:
            raise PermissionDenied(_("Only a manager or a superuser can do this."))
        request.project.require(request.user, Role.MANAGER)
    checks = run_health_checks()
    context = {
        "summary": summarize(checks),
        "worst": checks[0].level,
        "failed": [check for check in checks if check.level != Level.OK],
        "passed": [check for check in checks if check.level == Level.OK],
    }
    return render(request, "operations/health/index.html", context)
