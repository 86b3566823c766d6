"""Datasets: list, upload, sample, detail, repeated import, preview, versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from django.db.models import QuerySet
from django.utils.translation import gettext as _
from ninja import File, Form, Router, Schema, Status, UploadedFile
from pydantic import ConfigDict

from dashboard.api.access import Call, once
from dashboard.api.answer import Time
from dashboard.api.catalog.base_models import refuse_errors
from dashboard.api.failures import Failure
from dashboard.api.pagination import Newest, Rows, listing
from dashboard.api.refusals import READING, WRITING, Nothing, Refusal, invalid, refuse_others
from dashboard.api.texts import Column
from dashboard.forms.catalog.datasets import UploadForm
from dashboard.models import Dataset, DatasetVersion, ImportNotFailed, Job, Role, State
from workers.contract.specs import SPLITS

router = Router()
UPLOAD_FIELDS = ("file", "name", "prompt_column", "completion_column", "group_column", "skip_bad_rows")


class Splits(Schema):
    """Rows of each split; null before the import has finished."""

    train: int | None
    validation: int | None
    test: int | None


class ProblemRow(Schema):
    """An invalid row, counted from 1. `column` is null if the whole row is invalid."""

    row: int | None
    column: str | None
    message: str


class DatasetOut(Schema):
    """A dataset in the state of its newest version."""

    id: int
    name: str
    version: int | None
    state: str
    rows: int | None
    splits: Splits
    problems: list[ProblemRow]
    error: Failure | None


class VersionOut(DatasetOut):
    """One version of a dataset; `id` is the dataset's.

    `group_columns` have repeating values, so they may group rows. `groups` counts the independent groups of
    rows in each split; `split_notes` states which rows were grouped or left out.
    """

    shape: str | None
    columns: list[str]
    group_column: str | None
    group_columns: list[str]
    groups: Splits
    left_out: Splits
    split_notes: list[str]
    filename: str
    sha256: str | None
    test_sha256: str | None
    created_at: Time


class ImportAgainIn(Schema):
    """Columns and options of the next import. Omitted fields keep their value."""

    model_config = ConfigDict(extra="forbid")

    prompt_column: Column | None = None
    completion_column: Column | None = None
    group_column: Column | None = None
    skip_bad_rows: bool | None = None


class PreviewRow(Schema):
    """A row as the model reads it; `segments` mark the text that is learned."""

    row: int
    text: str
    segments: list[dict[str, Any]]
    tokens: int


class PreviewAnswer(Schema):
    """The first rows of a dataset."""

    data: list[PreviewRow]
    next: None = None


def serialize_at(dataset: Dataset, version: DatasetVersion | None) -> dict[str, Any]:
    """Return the JSON object of a dataset at one version."""
    problems = version.problems if version else []
    splits = version.splits if version else {}
    return {
        "id": dataset.pk,
        "name": dataset.name,
        "version": version.version if version else None,
        "state": version.state if version else State.FAILED,
        "rows": version.rows if version else None,
        "splits": by_split(splits),
        "problems": [
            {"row": row.get("row"), "column": row.get("column") or None, "message": row.get("message", "")}
            for row in problems
        ],
        "error": error_of(version),
    }


def by_split(values: dict[str, int]) -> dict[str, int | None]:
    """Return a number for each split; None if unknown."""
    return {name: values.get(name) for name in SPLITS}


def error_of(version: DatasetVersion | None) -> dict[str, str] | None:
    """Return why there are no rows, or None."""
    if version is None:
        return {"code": "no_rows", "message": _("No file has arrived for this dataset. Upload one.")}
    return version.job.error if version.job else None


def serialize_dataset(dataset: Dataset) -> dict[str, Any]:
    """Return the JSON object of a dataset at its newest version."""
    return serialize_at(dataset, dataset.newest())


def serialize_version(version: DatasetVersion) -> dict[str, Any]:
    """Return the JSON object of a version with its import report."""
    return {
        **serialize_at(version.dataset, version),
        "shape": version.report.get("shape") or None,
        "columns": [str(name) for name in version.report.get("columns", [])],
        "group_column": version.group_column or None,
        "group_columns": [str(column["name"]) for column in version.group_columns],
        "groups": by_split(version.report.get("groups", {})),
        "left_out": by_split(version.report.get("left_out", {})),
        "split_notes": version.split_notes,
        "filename": version.filename,
        "sha256": version.sha256 or None,
        "test_sha256": version.test_sha256 or None,
        "created_at": version.created_at,
    }


def fetch(request: Call, pk: int, role: Role = Role.VIEWER) -> Dataset:
    """Return the dataset with its versions, if the caller has the role in its project."""
    return Dataset.objects.with_newest().fetch(request.auth, pk, role)


@router.get("", response={200: list[DatasetOut], **READING})
@listing(Newest)
def index(request: Call) -> Rows:
    """List the project's datasets."""
    return Rows(Dataset.objects.with_newest().visible_to(request.auth), serialize_dataset)


@router.post("", response={202: DatasetOut, **WRITING})
def create(
    request: Call,
    file: File[UploadedFile],
    name: Form[str],
    prompt_column: Form[str] = "",
    completion_column: Form[str] = "",
    group_column: Form[str] = "",
    skip_bad_rows: Form[bool] = False,
) -> Status[dict[str, Any]]:
    """Upload JSONL, JSON, CSV or Parquet. The name of an existing dataset adds its next version."""
    refuse_others([*request.POST, *request.FILES], UPLOAD_FIELDS)
    columns = {"prompt_column": prompt_column, "completion_column": completion_column}
    texts = {"name": name, "group_column": group_column, **columns}
    if not name.strip():
        raise invalid("name", _("`name` must not be empty."))
    form = UploadForm({**texts, **({"skip_bad_rows": "on"} if skip_bad_rows else {})}, request.FILES)
    refuse_errors(form)
    job = once(request, Job.Kind.IMPORT, lambda key: upload(request, form.cleaned_data, key))
    # A version that was imported again has another job; it still has the uploaded file of this one.
    version = DatasetVersion.objects.get(upload=Path(job.spec["upload"]).name)
    return Status(202, serialize_dataset(fetch(request, version.dataset_id)))


def upload(request: Call, values: dict[str, Any], key: str) -> Job:
    """Return the import job of the next version."""
    return cast("Job", Dataset.objects.upload(request.auth.project, values, request.auth.user, key).job)


@router.post("/sample", response={202: DatasetOut, **WRITING})
def sample(request: Call, payload: Nothing | None = None) -> Status[dict[str, Any]]:
    """Import the bundled sample, unless the project has it."""
    dataset = Dataset.objects.import_sample(request.auth.project, request.auth.user)
    return Status(202, serialize_dataset(fetch(request, dataset.pk)))


@router.get("/{int:pk}", response={200: DatasetOut, **READING})
def detail(request: Call, pk: int) -> dict[str, Any]:
    """Return one dataset in the state of its newest version."""
    return serialize_dataset(fetch(request, pk))


@router.get("/{int:pk}/versions", response={200: list[VersionOut], **READING})
@listing(Newest)
def versions(request: Call, pk: int) -> Rows:
    """List all versions of a dataset with their import reports."""
    rows: QuerySet[DatasetVersion] = fetch(request, pk).versions.select_related("job", "dataset")
    return Rows(rows, serialize_version)


@router.get("/{int:pk}/preview", response={200: PreviewAnswer, **READING})
def preview(request: Call, pk: int) -> dict[str, Any]:
    """Return the first rows of the newest imported version with the chat template applied."""
    version = fetch(request, pk).newest_ready()
    if version is None:
        raise Refusal(409, "not_ready", _("No version of this dataset is imported yet."))
    return {"data": version.preview()}


@router.post("/{int:pk}/import-again", response={202: DatasetOut, **WRITING})
def import_again(request: Call, pk: int, payload: ImportAgainIn | None = None) -> Status[dict[str, Any]]:
    """Import the newest version's file again, with other columns or without its invalid rows."""
    version = fetch(request, pk, Role.EDITOR).newest()
    once(request, Job.Kind.IMPORT, lambda key: repeat(request, version, payload or ImportAgainIn(), key))
    return Status(202, serialize_dataset(fetch(request, pk)))


def repeat(request: Call, version: DatasetVersion | None, answer: ImportAgainIn, key: str) -> Job:
    """Queue another import of a version whose import has failed."""
    if version is None or version.state != State.FAILED:
        message = _("Only a failed import can be repeated. Upload the file again instead.")
        raise Refusal(409, "not_ready", message)
    prompt = chosen_column(version, "prompt_column", answer.prompt_column, version.prompt_column)
    completion = chosen_column(
        version, "completion_column", answer.completion_column, version.completion_column
    )
    group = chosen_column(version, "group_column", answer.group_column, version.group_column)
    if prompt and prompt == completion:
        raise invalid("completion_column", _("Prompt and answer must be two different columns."))
    if group and group in (prompt, completion):
        raise invalid("group_column", _("The prompt or answer column cannot be the group column."))
    skip = version.skip_bad_rows if answer.skip_bad_rows is None else answer.skip_bad_rows
    try:
        return version.import_again(
            request.auth.user,
            prompt_column=prompt,
            completion_column=completion,
            group_column=group,
            skip_bad_rows=skip,
            idempotency_key=key,
        )
    except ImportNotFailed as error:
        raise Refusal(409, "not_ready", str(error)) from error


def chosen_column(version: DatasetVersion, field: str, column: str | None, before: str) -> str:
    """Return the given column, which must exist, or the one before."""
    if column is None:
        return before
    known = [str(name) for name in version.report.get("columns", [])]
    if column and known and column not in known:
        listed = ", ".join(known[:20])
        raise invalid(field, _("There is no such column. Choose among: %(columns)s.") % {"columns": listed})
    return column
