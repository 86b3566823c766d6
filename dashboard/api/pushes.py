"""Pushes of an adapter, or of its export, to the Hugging Face hub. Start, list, detail."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext as _
from ninja import Router, Schema, Status
from pydantic import ConfigDict

from dashboard.api.access import Call, Token, once
from dashboard.api.catalog.base_models import refuse_errors
from dashboard.api.failures import Failure, failure_of
from dashboard.api.pagination import Newest, Rows, listing
from dashboard.api.refusals import READING, WRITING, Refusal, invalid, unknown
from dashboard.forms.exports import PushForm
from dashboard.models import Adapter, ExportRefused, HubPush, Job, Role
from dashboard.models.accounts.project import parse_id

router = Router()


class PushIn(Schema):
    """Upload an adapter or its export. `adapter`, `repository` (owner/name) and `token` are required.

    `format` is `adapter`, or one of the formats of exports. The token is erased when the push ends.
    """

    model_config = ConfigDict(extra="forbid")

    adapter: int | None = None
    repository: str = ""
    token: str = ""
    format: str = "adapter"
    private: bool = True


class PushOut(Schema):
    """A push, without its token. `url` and `commit` are null until it has succeeded."""

    id: int
    adapter: int
    repository: str
    format: str
    private: bool
    state: str
    job: int
    url: str | None
    commit: str | None
    error: Failure | None


def serialize_push(push: HubPush) -> dict[str, Any]:
    """Return the JSON object of a push."""
    return {
        "id": push.pk,
        "adapter": push.adapter_id,
        "repository": push.repository,
        "format": push.format,
        "private": push.private,
        "state": push.job.state,
        "job": push.job_id,
        "url": push.url or None,
        "commit": push.commit or None,
        "error": failure_of(push.job),
    }


@router.get("", response={200: list[PushOut], **READING})
@listing(Newest)
def index(request: Call) -> Rows:
    """List the project's pushes."""
    return Rows(HubPush.objects.select_related("job").visible_to(request.auth), serialize_push)


@router.post("", auth=Token(Role.MANAGER), response={202: PushOut, **WRITING})
def create(request: Call, payload: PushIn) -> Status[dict[str, Any]]:
    """Start a push; managers only. 409 `no_gguf` and `disk_full` as for exports."""
    job = once(request, Job.Kind.PUSH, lambda key: start(request, payload, key))
    return Status(202, serialize_push(HubPush.objects.select_related("job").get(job=job)))


def start(request: Call, payload: PushIn, key: str) -> Job:
    """Return the job of the push. The page's form checks the input."""
    if payload.adapter is None:
        raise invalid("adapter", _("`adapter` must be the id of an adapter."))
    number = parse_id(str(payload.adapter))
    rows = Adapter.objects.with_facts().visible_to(request.auth)
    adapter = rows.filter(pk=number).first() if number is not None else None
    if adapter is None:
        raise unknown("adapter", _("adapter"))
    form = PushForm(adapter, payload.dict())
    refuse_errors(form)
    try:
        push = HubPush.objects.start(adapter, request.auth.user, **form.cleaned_data, idempotency_key=key)
    except ExportRefused as refusal:
        raise Refusal(409, refusal.code, str(refusal)) from refusal
    return push.job


@router.get("/{int:pk}", response={200: PushOut, **READING})
def detail(request: Call, pk: int) -> dict[str, Any]:
    """Return one push."""
    return serialize_push(HubPush.objects.select_related("job").fetch(request.auth, pk))
