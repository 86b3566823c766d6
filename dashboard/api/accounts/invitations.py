"""Invitations: list, create, revoke. For managers only."""

from __future__ import annotations

from django.urls import reverse
from django.utils.translation import gettext as _
from ninja import Router, Schema, Status
from pydantic import ConfigDict

from dashboard.api.access import Call, Token, once_only
from dashboard.api.answer import Time
from dashboard.api.catalog.base_models import refuse_errors
from dashboard.api.pagination import Newest, Rows, listing
from dashboard.api.refusals import READING, WRITING, Refusal
from dashboard.forms.accounts.team import InvitationForm
from dashboard.models import Invitation, Role

router = Router()


class InvitationIn(Schema):
    """An invitation to create."""

    model_config = ConfigDict(extra="forbid")

    email: str
    role: Role = Role.EDITOR


class InvitationOut(Schema):
    """An open invitation."""

    id: int
    email: str
    role: str
    created_at: Time
    expires_at: Time


class NewInvitationOut(InvitationOut):
    """A new invitation with its link, which only this response contains. No email is sent."""

    link: str


@router.get("", response={200: list[InvitationOut], **READING})
@listing(Newest)
def index(request: Call) -> Rows:
    """List open invitations. The list is empty for callers who do not manage the project."""
    return Rows(Invitation.objects.open().managed_by(request.auth), InvitationOut.from_orm)


@router.post("", auth=Token(Role.MANAGER), response={201: NewInvitationOut, **WRITING})
def create(request: Call, payload: InvitationIn) -> Status[NewInvitationOut]:
    """Create an invitation. Send the link yourself; it works once."""
    form = InvitationForm(request.auth.project, {"email": payload.email, "role": payload.role.value})
    refuse_errors(form)
    once_only(request, "invitation-create")
    invitation, secret = Invitation.issue(
        request.auth.project, form.cleaned_data["email"], form.cleaned_data["role"], request.auth.user
    )
    link = request.build_absolute_uri(reverse("invitation-accept", args=[secret]))
    facts = InvitationOut.from_orm(invitation).dict()
    return Status(201, NewInvitationOut(**facts, link=link))


@router.delete("/{int:pk}", auth=Token(Role.MANAGER), response={204: None, **WRITING})
def revoke(request: Call, pk: int) -> Status[None]:
    """Revoke an open invitation. Its link stops working."""
    invitation = Invitation.objects.fetch(request.auth, pk, Role.MANAGER)
    if invitation.accepted_at:
        raise Refusal(409, "already_ended", _("This user has already joined."))
    invitation.delete()
    return Status(204, None)
