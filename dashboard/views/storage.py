"""Settings, Storage: what takes the space, and one clean-up of what is safe to remove.

Managers see their project, superusers the installation. Sizes are those that the dispatcher measured
last, and it carries the clean-up out: no request walks the disk.
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
from dashboard.models.installation import Installation
from dashboard.models.project import refusal_for

BIGGEST = 10


@dataclass(frozen=True)
class Scope:
    """Everything the page says about one project, or (without one) about the installation."""

    project: Project | None
    uses: list[StorageUse]
    asked: CleanUp | None
    done: CleanUp | None

    @property
    def name(self) -> str:
        """What a form says to mean this."""
        return "project" if self.project else "all"

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(use.bytes for use in self.uses)

    @property
    def measured_at(self) -> datetime | None:
        """When the sizes were taken; None before the first time."""
        return self.uses[0].measured_at if self.uses else None

    @property
    def biggest(self) -> list[dict[str, Any]]:
        """Single things by size, only of a project: its people may know what they are."""
        if not self.project:
            return []
        named = (
            {"kind": use.get_kind_display(), "title": title, "url": address, "bytes": size}
            for use in self.uses
            for title, address, size in use.biggest
        )
        return sorted(named, key=lambda one: -one["bytes"])[:BIGGEST]

    @property
    def removable(self) -> int:
        """Bytes that a clean-up would free."""
        return sum(use.removable_bytes for use in self.uses)

    @property
    def goes(self) -> dict[str, StorageUse]:
        """What a clean-up removes, by kind."""
        return {use.kind: use for use in self.uses if use.removable_count}


@require_GET
def index(request: Request) -> HttpResponse:
    """Sizes by kind, the biggest things, and what is safe to remove and why."""
    scopes = [scope_of(project) for project in keeps(request).values()]
    context: dict[str, Any] = {
        "scopes": scopes,
        "is_at_home": Installation.objects.is_at_home(),
        "keep_checkpoints_days": settings.KEEP_CHECKPOINTS_DAYS,
        "keep_logs_days": settings.KEEP_LOGS_DAYS,
        "log_limit_bytes": settings.LOG_LIMIT_BYTES,
    }
    if request.user.is_superuser:
        sizes = StorageUse.objects.exclude(project=None).values("project__name")
        context["projects"] = sizes.annotate(bytes=Sum("bytes")).order_by("-bytes")[:BIGGEST]
        context["leader"] = WorkerNode.objects.leading().first()
    return render(request, "storage/index.html", context)


@require_POST
def clean_up(request: Request) -> HttpResponse:
    """Ask for the clean-up of a project or, as a superuser, of everything."""
    kept = keeps(request)
    scope = request.POST.get("scope", next(iter(kept)))
    if scope not in kept:
        raise PermissionDenied(refusal_for(Role.MANAGER))
    if Installation.objects.is_at_home():
        CleanUp.objects.ask(kept[scope], request.user)
        messages.success(
            request, _("The clean-up starts within a minute. The sizes on this page update afterwards.")
        )
    else:
        messages.warning(
            request, _("Nothing was deleted because the data folder belongs to another database.")
        )
    return redirect("storage-index")


def keeps(request: Request) -> dict[str, Project | None]:
    """What the caller looks after: the open project as its manager, all (None) as a superuser."""
    kept: dict[str, Project | None] = {}
    if request.project and request.user.projects(Role.MANAGER).filter(pk=request.project.pk).exists():
        kept["project"] = request.project
    if request.user.is_superuser:
        kept["all"] = None
    if not kept:
        raise PermissionDenied(refusal_for(Role.MANAGER))
    return kept


def scope_of(project: Project | None) -> Scope:
    """What is known of it."""
    uses = [use for use in StorageUse.objects.filter(project=project) if use.count]
    wishes = CleanUp.objects.filter(project=project)
    return Scope(project, uses, wishes.open().first(), wishes.exclude(done_at=None).first())
