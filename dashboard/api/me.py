"""What a token is good for: its project, its owner, and what both allow."""

from __future__ import annotations

from datetime import datetime

from ninja import Router, Schema

from dashboard.api.access import Call
from dashboard.api.refusals import READING
from dashboard.models import Role

router = Router()


class ProjectOut(Schema):
    """The project that the token belongs to."""

    id: int
    name: str


class MeOut(Schema):
    """The token as the server sees it."""

    project: ProjectOut
    email: str
    role: str | None
    scope: str
    expires_at: datetime | None


@router.get("", response={200: MeOut, **READING})
def detail(request: Call) -> MeOut:
    """Whose token this is, and what it may do."""
    token = request.auth
    membership = token.project.memberships.filter(user=token.user).first()
    return MeOut(
        project=ProjectOut(id=token.project.pk, name=token.project.name),
        email=token.user.email,
        role=Role(membership.role) if membership else None,
        scope=token.scope,
        expires_at=token.expires_at,
    )
