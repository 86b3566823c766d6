"""The team page: members of the project and their roles, invitations and shared reports."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from dashboard.forms.accounts.team import InvitationForm
from dashboard.gate import Request
from dashboard.models import Invitation, Membership, Role, ShareLink, TryOutLink


@require_GET
def index(request: Request) -> HttpResponse:
    """Show members; to managers also invitations and shared reports."""
    return show(request, InvitationForm(request.project))


def show(request: Request, form: InvitationForm, status: int = 200, **more: Any) -> HttpResponse:
    """Render the page with this invitation form."""
    members = Membership.objects.visible_to(request.user).filter(project=request.project)
    invitations = Invitation.objects.open().managed_by(request.user).filter(project=request.project)
    links = ShareLink.objects.working().managed_by(request.user).filter(project=request.project)
    try_outs = (
        TryOutLink.objects.working().with_votes().managed_by(request.user).filter(project=request.project)
    )
    context = {
        "try_out_links": try_outs.filter(project=request.project),
        "share_links": links.select_related("study"),
        "members": members.select_related("user").order_by("created_at", "pk"),
        "invitations": invitations.select_related("invited_by").order_by("-created_at"),
        "roles": Role.choices,
        "form": form,
        **more,
    }
    return render(request, "accounts/team/index.html", context, status=status)
