"""Settings, Health: what is wrong with this installation and how to mend it. Asks no broker."""

from __future__ import annotations

from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from dashboard.gate import Request
from dashboard.models import Role
from dashboard.models.finding import Level, summary
from dashboard.models.health import findings


@require_GET
def index(request: Request) -> HttpResponse:
    """For managers, and for superusers whether or not they belong to a project."""
    if not request.user.is_superuser:
        if not request.project:
            raise PermissionDenied(_("Only a manager or a superuser can do this."))
        request.project.require(request.user, Role.MANAGER)
    found = findings()
    context = {
        "summary": summary(found),
        "worst": found[0].level,
        "trouble": [finding for finding in found if finding.level != Level.OK],
        "fine": [finding for finding in found if finding.level == Level.OK],
    }
    return render(request, "health/index.html", context)
