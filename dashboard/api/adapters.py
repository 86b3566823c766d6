"""Adapters: list, detail, stage, download."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from django.http import HttpResponseBase
from django.utils.translation import gettext as _
from ninja import Router, Schema
from pydantic import ConfigDict

from dashboard.api.access import Call, Token
from dashboard.api.answer import Answer
from dashboard.api.pagination import Rows, listing
from dashboard.api.refusals import READING, WRITING, Refusal, invalid
from dashboard.api.training.run_list import SortedAdapters, listed
from dashboard.downloads import ranged_file
from dashboard.gate import api_error
from dashboard.models import Adapter, Role, TrainingRun
from dashboard.models.adapters.adapter import FILES_MISSING
from workers.contract.errors import ModelError

router = Router()
ZIP = {"responses": {200: {"description": "The zip", "content": {"application/zip": {}}}}}


class AdapterOut(Answer):
    """A finished adapter. `bytes` and `sha256` are those of `adapter_model.safetensors`, `tags` its run's."""

    id: int
    name: str
    version: int
    stage: str
    run: int
    base_model: int
    bytes: int
    sha256: str
    tags: list[str]


class StageIn(Schema):
    """The new stage; required."""

    model_config = ConfigDict(extra="forbid")

    # Optional here, so that an adapter of another project is 404 before its body is validated.
    stage: Literal["draft", "approved", "retired"] | None = None


def serialize_adapter(adapter: Adapter) -> AdapterOut:
    """Return the JSON object of an adapter."""
    return AdapterOut(
        id=adapter.pk,
        name=adapter.name,
        version=adapter.version,
        stage=adapter.stage,
        run=adapter.run_id,
        base_model=adapter.base_model_id,
        bytes=adapter.size_bytes,
        sha256=adapter.sha256,
        tags=[tag.name for tag in adapter.run.tags.all()],
    )


@router.get("", response={200: list[AdapterOut], **READING})
@listing(SortedAdapters)
def index(request: Call) -> Rows:
    """List the project's adapters, by default those of the newest runs first."""
    runs = TrainingRun.objects.select_related("adapter").prefetch_related("tags").only("pk", "adapter")
    return listed(request, runs, has_adapter=True, convert=lambda run: serialize_adapter(run.adapter))


@router.get("/{int:pk}", response={200: AdapterOut, **READING})
def detail(request: Call, pk: int) -> AdapterOut:
    """Return one adapter."""
    return serialize_adapter(Adapter.objects.fetch(request.auth, pk))


@router.post("/{int:pk}/stage", auth=Token(Role.MANAGER), response={200: AdapterOut, **WRITING})
def stage(request: Call, pk: int, payload: StageIn) -> AdapterOut:
    """Change the stage to draft, approved or retired."""
    adapter = Adapter.objects.fetch(request.auth, pk, Role.MANAGER)
    if payload.stage is None:
        raise invalid("stage", _("`stage` must be draft, approved or retired."))
    adapter.set_stage(payload.stage)
    return serialize_adapter(adapter)


@router.api_operation(["HEAD"], "/{int:pk}/download", include_in_schema=False)
@router.get("/{int:pk}/download", response=READING, openapi_extra=ZIP)
def download(
    request: Call,
    pk: int,
    dtype: Literal["float32", "bfloat16"] = "float32",
    format: Literal["zip", "gguf"] = "zip",
) -> HttpResponseBase:
    """Download the adapter as a zip archive. PEFT loads the unpacked folder. Supports Range requests.

    With `dtype=bfloat16` the weights are rounded to half their size; the scores stay those before rounding.
    `format=gguf` is the one file that llama.cpp, Ollama and LM Studio load, always in float32.
    """
    adapter = Adapter.objects.fetch(request.auth, pk)
    half = dtype == "bfloat16"
    try:
        if format == "gguf":
            return ranged_answer(request, adapter.gguf(), adapter.gguf_name())
        return ranged_answer(request, adapter.archive(half=half), adapter.archive_name(half=half))
    except FileNotFoundError as error:
        raise Refusal(404, "files_missing", str(FILES_MISSING)) from error
    except ModelError as error:
        raise Refusal(409, "no_gguf", error.message) from error


def ranged_answer(request: Call, path: Path, filename: str) -> HttpResponseBase:
    """Return the file as a resumable download, and its refusals in the API's format."""
    answer = ranged_file(request, path, filename)
    if answer.status_code == 412:
        return api_error(
            412, "changed", _("The file differs from the one that `If-Match` names."), "If-Match"
        )
    if answer.status_code != 416:
        return answer
    refused = api_error(
        416, "range_not_satisfiable", _("Request one range inside the file, or the whole file.")
    )
    refused["Content-Range"] = answer["Content-Range"]
    return refused
