"""Exports: an adapter merged into its base model, as one file. Start, list, download, delete."""

from __future__ import annotations

from typing import Literal

from django.http import HttpResponseBase
from django.utils.translation import gettext as _
from ninja import Router, Schema, Status
from pydantic import ConfigDict

from dashboard.api.access import Call, once
from dashboard.api.adapters import ranged_answer
from dashboard.api.answer import Time
from dashboard.api.failures import Failure, failure_of
from dashboard.api.pagination import Newest, Rows, listing
from dashboard.api.refusals import READING, WRITING, Refusal, invalid, unknown
from dashboard.models import Adapter, Export, ExportRefused, Job, Role
from dashboard.models.accounts.project import parse_id
from dashboard.models.adapters.adapter import FILES_MISSING

router = Router()
FILE = {"responses": {200: {"description": "The file", "content": {"application/octet-stream": {}}}}}


class ExportIn(Schema):
    """The adapter and the format, both required: a zip of a Transformers folder in `float32` or `bfloat16`,
    or one GGUF file in F16 or Q8_0."""

    model_config = ConfigDict(extra="forbid")

    adapter: int | None = None
    format: Literal["float32", "bfloat16", "gguf-f16", "gguf-q8_0"] | None = None


class ExportOut(Schema):
    """An export. `step` of `total_steps` bytes are written in the phase `writing`. `expected_bytes` is the
    forecast; `bytes`, `sha256` and `filename` are those of the finished file, and null before."""

    id: int
    adapter: int
    format: str
    state: str
    job: int
    phase: str | None
    step: int
    total_steps: int
    expected_bytes: int
    bytes: int | None
    sha256: str | None
    filename: str | None
    expires_at: Time | None
    error: Failure | None


def serialize_export(export: Export) -> ExportOut:
    """Return the JSON object of an export."""
    job = export.job
    return ExportOut(
        id=export.pk,
        adapter=export.adapter_id,
        format=export.format,
        state=job.state,
        job=job.pk,
        phase=job.phase or None,
        step=job.step,
        total_steps=job.total_steps,
        expected_bytes=export.expected_bytes,
        bytes=export.size_bytes,
        sha256=export.sha256 or None,
        filename=export.filename or None,
        expires_at=export.expires_at,
        error=failure_of(job),
    )


def fetch(request: Call, pk: int, role: Role = Role.VIEWER) -> Export:
    return Export.objects.select_related("job").fetch(request.auth, pk, role)


@router.get("", response={200: list[ExportOut], **READING})
@listing(Newest)
def index(request: Call, adapter: int | None = None) -> Rows:
    """List the project's exports, all or those of one `adapter`."""
    exports = Export.objects.select_related("job").visible_to(request.auth)
    return Rows(exports.filter(adapter=adapter) if adapter is not None else exports, serialize_export)


@router.post("", response={202: ExportOut, **WRITING})
def create(request: Call, payload: ExportIn) -> Status[ExportOut]:
    """Start an export, or return the one of this adapter and format that is open or finished.

    409 `no_gguf` for a base model without GGUF form, `disk_full` without room for the file. Stop it with
    `POST /jobs/{id}/cancel`.
    """
    job = once(request, Job.Kind.EXPORT, lambda key: start(request, payload, key))
    export = Export.objects.select_related("job").filter(job=job).first()
    if export is None:
        raise Refusal(409, "deleted", _("The export of this `Idempotency-Key` was deleted."))
    return Status(202, serialize_export(export))


def start(request: Call, payload: ExportIn, key: str) -> Job:
    """Return the job of the export."""
    if payload.adapter is None:
        raise invalid("adapter", _("`adapter` must be the id of an adapter."))
    rows = Adapter.objects.with_facts().visible_to(request.auth)
    number = parse_id(str(payload.adapter))
    adapter = rows.filter(pk=number).first() if number is not None else None
    if adapter is None:
        raise unknown("adapter", _("adapter"))
    if payload.format is None:
        raise invalid("format", _("`format` must be float32, bfloat16, gguf-f16 or gguf-q8_0."))
    try:
        return Export.objects.start(adapter, payload.format, request.auth.user, idempotency_key=key).job
    except ExportRefused as refusal:
        raise Refusal(409, refusal.code, str(refusal)) from refusal


@router.get("/{int:pk}", response={200: ExportOut, **READING})
def detail(request: Call, pk: int) -> ExportOut:
    """Return one export."""
    return serialize_export(fetch(request, pk))


@router.delete("/{int:pk}", response={204: None, **WRITING}, url_name="export-detail")
def delete(request: Call, pk: int) -> Status[None]:
    """Delete an export with its file. 409 `still_running` until it has ended."""
    try:
        fetch(request, pk, Role.EDITOR).remove()
    except ExportRefused as refusal:
        raise Refusal(409, refusal.code, str(refusal)) from refusal
    return Status(204, None)


@router.api_operation(["HEAD"], "/{int:pk}/download", include_in_schema=False)
@router.get("/{int:pk}/download", response=READING, openapi_extra=FILE)
def download(request: Call, pk: int) -> HttpResponseBase:
    """Download the file of a finished export. Supports Range requests. 409 `not_finished` before its end."""
    export = fetch(request, pk)
    if not export.is_finished:
        raise Refusal(409, "not_finished", _("This export has no file yet."))
    try:
        return ranged_answer(request, export.path(), export.filename)
    except FileNotFoundError as error:
        raise Refusal(404, "files_missing", str(FILES_MISSING)) from error
