"""Members of the project: list, change a role, remove. The only manager cannot be removed."""

from __future__ import annotations

from django.utils.translation import gettext as _
from ninja import Router, Schema, Status
from pydantic import ConfigDict

from dashboard.api.access import Call, Token
from dashboard.api.answer import Time
from dashboard.api.pagination import Newest, Rows, listing
from dashboard.api.refusals import READING, WRITING, Refusal, invalid
from dashboard.models import LastManager, Membership, Role

router = Router()


class MembershipOut(Schema):
    """A member and their role."""

    id: int
    email: str
    name: str
    role: str
    created_at: Time


class RoleIn(Schema):
    """The new role of a member."""

    model_config = ConfigDict(extra="forbid")

    # Optional, because a caller who may not see the member must get 404, not 422.
    role: Role | None = None


def to_output(member: Membership) -> MembershipOut:
    return MembershipOut(
        id=member.pk,
        email=member.user.email,
        name=member.user.get_full_name(),
        role=member.role,
        created_at=member.created_at,
    )


@router.get("", response={200: list[MembershipOut], **READING})
@listing(Newest)
def index(request: Call) -> Rows:
    """List the members of the project."""
    return Rows(Membership.objects.visible_to(request.auth).select_related("user"), to_output)


@router.post("/{int:pk}/role", auth=Token(Role.MANAGER), response={200: MembershipOut, **WRITING})
def change(request: Call, pk: int, payload: RoleIn) -> MembershipOut:
    """Change the role of a member."""
    member = Membership.objects.fetch(request.auth, pk, Role.MANAGER)
    if payload.role is None:
        raise invalid("role", _("`role` must be viewer, editor or manager."))
    try:
        member.change_role(payload.role)
    except LastManager as error:
        raise last_manager() from error
    return to_output(member)


@router.delete("/{int:pk}", auth=Token(Role.MANAGER), response={204: None, **WRITING})
def remove(request: Call, pk: int) -> Status[None]:
    """Remove a member from the project. Their data is kept."""
    member = Membership.objects.fetch(request.auth, pk, Role.MANAGER)
    try:
        member.remove()
    except LastManager as error:
        raise last_manager() from error
    return Status(204, None)


def last_manager() -> Refusal:
    return Refusal(
        409, "last_manager", _("This is the only manager. Give another member the manager role first.")
    )
