"""The token of the request: project, owner, role and scope."""

from __future__ import annotations

from django.shortcuts import get_object_or_404
from ninja import Router, Schema

from dashboard.api.access import Call
from dashboard.api.answer import Time
from dashboard.api.refusals import READING

router = Router()


class ProjectOut(Schema):
    """The project that the token belongs to."""

    id: int
    name: str


class MeOut(Schema):
    """The token of the request."""

    project: ProjectOut
    email: str
    role: str
    scope: str
    expires_at: Time | None


@router.get("", response={200: MeOut, **READING})
def detail(request: Call) -> MeOut:
    """Get project, owner, role and scope of the token."""
    token = request.auth
    membership = get_object_or_404(token.project.memberships, user=token.user)
    return MeOut(
        project=ProjectOut(id=token.project.pk, name=token.project.name),
        email=token.user.email,
        role=membership.role,
        scope=token.scope,
        expires_at=token.expires_at,
    )
