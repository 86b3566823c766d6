"""Members of the project: list, change a role, remove. Never the last manager."""

from __future__ import annotations

from datetime import datetime

from django.utils.translation import gettext as _
from ninja import Router, Schema, Status
from ninja.pagination import paginate
from pydantic import ConfigDict

from dashboard.api.access import Call, Token
from dashboard.api.paging import Newest, Rows
from dashboard.api.refusals import READING, WRITING, Refusal, invalid
from dashboard.models import LastManager, Membership, Role

router = Router()


class MembershipOut(Schema):
    """A person's role in the project."""

    id: int
    email: str
    name: str
    role: str
    created_at: datetime


class RoleIn(Schema):
    """The new role of a member."""

    model_config = ConfigDict(extra="forbid")

    # Looked at after the member: whoever may not see them learns nothing from a bad body.
    role: Role | None = None


def shown(member: Membership) -> MembershipOut:
    """The object as every answer has it."""
    return MembershipOut(
        id=member.pk,
        email=member.user.email,
        name=member.user.get_full_name(),
        role=member.role,
        created_at=member.created_at,
    )


@router.get("", response={200: list[MembershipOut], **READING})
@paginate(Newest)
def index(request: Call) -> Rows:
    """Who belongs to the project."""
    return Rows(Membership.objects.visible_to(request.auth).select_related("user"), shown)


@router.post("/{int:pk}/role", auth=Token(Role.MANAGER), response={200: MembershipOut, **WRITING})
def change(request: Call, pk: int, payload: RoleIn) -> MembershipOut:
    """Give a member another role."""
    member = Membership.objects.fetch(request.auth, pk, Role.MANAGER)
    if payload.role is None:
        raise invalid("role", _("`role` must be viewer, editor or manager."))
    try:
        member.change_role(payload.role)
    except LastManager as error:
        raise last_manager() from error
    return shown(member)


@router.delete("/{int:pk}", auth=Token(Role.MANAGER), response={204: None, **WRITING})
def remove(request: Call, pk: int) -> Status[None]:
    """Take a member out of the project; what they made stays."""
    member = Membership.objects.fetch(request.auth, pk, Role.MANAGER)
    try:
        member.remove()
    except LastManager as error:
        raise last_manager() from error
    return Status(204, None)


def last_manager() -> Refusal:
    """Why nothing was changed, and what to do first."""
    return Refusal(
        409, "last_manager", _("This is the only manager. Give another member the manager role first.")
    )
