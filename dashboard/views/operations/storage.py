"""Settings, Storage: disk use and the clean-up.

Managers see their project, superusers the installation. The dispatcher measures the sizes and runs the
clean-up: no request walks the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db.models import Sum
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from dashboard.gate import Request
from dashboard.models import CleanUp, Project, Role, StorageUse, WorkerNode
from dashboard.models.accounts.project import refusal_for
from dashboard.models.operations.installation import Installation

BIGGEST = 10


@dataclass(frozen=True)
class Scope:
    """The disk use of one project, or (without one) of the installation."""

    project: Project | None
    uses: list[StorageUse]
    requested: CleanUp | None
    done: CleanUp | None

    @property
    def name(self) -> str:
        """Return the value of the form field `scope`."""
        return "project" if self.project else "all"

    @property
    def total(self) -> int:
        return sum(use.bytes for use in self.uses)

    @property
    def measured_at(self) -> datetime | None:
        return self.uses[0].measured_at if self.uses else None

    @property
    def biggest(self) -> list[dict[str, Any]]:
        """Return the largest entries, only of a project."""
        if not self.project:
            return []
        entries = (
            {"kind": use.get_kind_display(), "title": title, "url": address, "bytes": size}
            for use in self.uses
            for title, address, size in use.biggest
        )
        return sorted(entries, key=lambda entry: -entry["bytes"])[:BIGGEST]

    @property
    def removable(self) -> int:
        """Return the bytes that a clean-up would free."""
        return sum(use.removable_bytes for use in self.uses)

    @property
    def removable_uses(self) -> dict[str, StorageUse]:
        """Return the kinds that a clean-up deletes."""
        return {use.kind: use for use in self.uses if use.removable_count}


@require_GET
def index(request: Request) -> HttpResponse:
    """Show sizes by kind, the largest entries and the clean-up."""
    scopes = [scope_of(project) for project in scopes_of(request).values()]
    context: dict[str, Any] = {
        "scopes": scopes,
        "is_at_home": Installation.objects.is_at_home(),
        "keep_checkpoints_days": settings.KEEP_CHECKPOINTS_DAYS,
        "keep_exports_days": settings.KEEP_EXPORTS_DAYS,
        "keep_logs_days": settings.KEEP_LOGS_DAYS,
        "log_limit_bytes": settings.LOG_LIMIT_BYTES,
    }
    if request.user.is_superuser:
        sizes = StorageUse.objects.exclude(project=None).values("project__name")
        context["projects"] = sizes.annotate(bytes=Sum("bytes")).order_by("-bytes")[:BIGGEST]
        context["leader"] = WorkerNode.objects.leading().first()
    return render(request, "operations/storage/index.html", context)


@require_POST
def clean_up(request: Request) -> HttpResponse:
    """Request the clean-up of a project or, as a superuser, of the installation."""
    scopes = scopes_of(request)
    scope = request.POST.get("scope", next(iter(scopes)))
    if scope not in scopes:
        raise PermissionDenied(refusal_for(Role.MANAGER))
    if Installation.objects.is_at_home():
        CleanUp.objects.request(scopes[scope], request.user)
        messages.success(
            request, _("The clean-up starts within a minute. The sizes on this page update afterwards.")
        )
    else:
        messages.warning(
            request, _("Nothing was deleted because the data folder belongs to another database.")
        )
    return redirect("storage-index")


def scopes_of(request: Request) -> dict[str, Project | None]:
    """Return the scopes of the caller: the open project for managers, all (None) for superusers."""
    scopes: dict[str, Project | None] = {}
    if request.project and request.user.has_role(Role.MANAGER, request.project.pk):
        scopes["project"] = request.project
    if request.user.is_superuser:
        scopes["all"] = None
    if not scopes:
        raise PermissionDenied(refusal_for(Role.MANAGER))
    return scopes


def scope_of(project: Project | None) -> Scope:
    uses = [use for use in StorageUse.objects.filter(project=project) if use.count]
    clean_ups = CleanUp.objects.filter(project=project)
    return Scope(project, uses, clean_ups.open().first(), clean_ups.exclude(done_at=None).first())
