"""API tokens: list, create, revoke. A token cannot create one with more rights or a later expiry."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from django.utils import timezone
from django.utils.translation import gettext as _
from ninja import Field, Router, Schema, Status
from pydantic import AfterValidator, ConfigDict, StrictInt, StrictStr

from dashboard.api.access import Call, once_only
from dashboard.api.answer import Time
from dashboard.api.pagination import Newest, Rows, listing
from dashboard.api.refusals import READING, WRITING, Refusal, invalid
from dashboard.api.texts import one_line
from dashboard.models import ApiToken
from dashboard.models.accounts.project import ProjectQuerySet

router = Router()
TokenName = Annotated[StrictStr, Field(min_length=1, max_length=100), AfterValidator(one_line)]
Days = Annotated[StrictInt, Field(ge=1, le=3650)]


class TokenIn(Schema):
    """A token to create. Without `days` it does not expire."""

    model_config = ConfigDict(extra="forbid")

    name: TokenName
    scope: ApiToken.Scope = ApiToken.Scope.READ
    days: Days | None = None


class TokenOut(Schema):
    """A token, without its secret."""

    id: int
    name: str
    prefix: str
    scope: str
    email: str
    created_at: Time
    expires_at: Time | None
    last_used_at: Time | None


class NewTokenOut(TokenOut):
    """A new token with its secret, which only this response contains."""

    secret: str


def to_output(token: ApiToken) -> dict[str, Any]:
    """Return the fields of TokenOut."""
    names = ("name", "prefix", "scope", "created_at", "expires_at", "last_used_at")
    return {"id": token.pk, "email": token.user.email, **{name: getattr(token, name) for name in names}}


def visible_tokens(caller: ApiToken) -> ProjectQuerySet[ApiToken]:
    return ApiToken.objects.manageable_by(caller, caller.user).filter(revoked_at=None)


@router.get("", response={200: list[TokenOut], **READING})
@listing(Newest)
def index(request: Call) -> Rows:
    """List your tokens of the project. Managers see all tokens."""
    return Rows(visible_tokens(request.auth), to_output)


@router.post("", response={201: NewTokenOut, **WRITING})
def create(request: Call, payload: TokenIn) -> Status[NewTokenOut]:
    """Create a token for the same owner and project."""
    own_expiry = request.auth.expires_at
    ends = timezone.now() + timedelta(days=payload.days) if payload.days else None
    if own_expiry and (ends is None or ends > own_expiry):
        raise invalid("days", _("A token cannot create a token that expires later than itself."))
    once_only(request, "token-create")
    token, secret = ApiToken.issue(
        request.auth.project, request.auth.user, payload.name, scope=payload.scope, days=payload.days
    )
    return Status(201, NewTokenOut(**to_output(token), secret=secret))


@router.delete("/{int:pk}", response={204: None, **WRITING})
def revoke(request: Call, pk: int) -> Status[None]:
    """Revoke your token, or any token of a project that you manage."""
    token = visible_tokens(request.auth).filter(pk=pk).first()
    if token is None:
        raise Refusal(404, "not_found", _("There is no such object in this project."))
    token.revoke()
    return Status(204, None)
