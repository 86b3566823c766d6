"""Datasets: list, upload, the sample, look, import again, preview, versions."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, cast

from django.db import IntegrityError
from django.db.models import QuerySet
from django.utils.translation import gettext as _
from ninja import File, Form, Router, Schema, Status, UploadedFile
from ninja.pagination import paginate
from pydantic import ConfigDict

from dashboard.api.access import Call, once
from dashboard.api.base_models import refuse_errors
from dashboard.api.failures import Failure
from dashboard.api.paging import Newest, Rows
from dashboard.api.refusals import READING, WRITING, Nothing, Refusal, invalid, refuse_others
from dashboard.api.texts import Column
from dashboard.forms.datasets import UploadForm
from dashboard.models import Dataset, DatasetVersion, ImportKept, Job, Role, State
from workers.specs import SPLITS

router = Router()
UPLOAD_FIELDS = ("file", "name", "prompt_column", "completion_column", "group_column", "skip_bad_rows")


class Splits(Schema):
    """Rows of each split; null until the import has ended."""

    train: int | None
    validation: int | None
    test: int | None


class ProblemRow(Schema):
    """A row that does not fit, counted from 1, and why. `column` is null where the whole row is meant."""

    row: int | None
    column: str | None
    message: str


class DatasetOut(Schema):
    """A dataset, as its newest version stands."""

    id: int
    name: str
    version: int | None
    state: str
    rows: int | None
    splits: Splits
    problems: list[ProblemRow]
    error: Failure | None


class VersionOut(DatasetOut):
    """One version of a dataset; `id` is the dataset's. What its rows looked like, and when they came.

    `group_columns` repeat their values, so they may say which rows belong together; `groups` counts what is
    independent in each split, and `split_notes` say what was kept together or left out.
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
    created_at: datetime


class ImportAgainIn(Schema):
    """The answer to what a failed import asked. What is left out stays as it was."""

    model_config = ConfigDict(extra="forbid")

    prompt_column: Column | None = None
    completion_column: Column | None = None
    group_column: Column | None = None
    skip_bad_rows: bool | None = None


class PreviewRow(Schema):
    """A row as the model reads it; `segments` tell the learned text from the rest."""

    row: int
    text: str
    segments: list[dict[str, Any]]
    tokens: int


class PreviewAnswer(Schema):
    """The first rows of a dataset."""

    data: list[PreviewRow]
    next: None = None


def facts(dataset: Dataset, version: DatasetVersion | None) -> dict[str, Any]:
    """A dataset at one version."""
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
            {"row": one.get("row"), "column": one.get("column") or None, "message": one.get("message", "")}
            for one in problems
        ],
        "error": error_of(version),
    }


def by_split(values: dict[str, int]) -> dict[str, int | None]:
    """A number for each split, null where nobody has counted."""
    return {name: values.get(name) for name in SPLITS}


def error_of(version: DatasetVersion | None) -> dict[str, str] | None:
    """Why there are no rows to use, or None."""
    if version is None:
        return {"code": "no_rows", "message": _("No file has arrived for this dataset. Upload one.")}
    return version.job.error if version.job else None


def shown(dataset: Dataset) -> dict[str, Any]:
    """The object as every answer has it."""
    return facts(dataset, dataset.newest())


def version_shown(version: DatasetVersion) -> dict[str, Any]:
    """One version, with what its import found out."""
    return {
        **facts(version.dataset, version),
        "shape": version.report.get("shape") or None,
        "columns": [str(name) for name in version.report.get("columns", [])],
        "group_column": version.group_column or None,
        "group_columns": [str(one["name"]) for one in version.group_columns],
        "groups": by_split(version.report.get("groups", {})),
        "left_out": by_split(version.report.get("left_out", {})),
        "split_notes": version.split_notes,
        "filename": version.filename,
        "sha256": version.sha256 or None,
        "test_sha256": version.test_sha256 or None,
        "created_at": version.created_at,
    }


def fetch(request: Call, pk: int, role: Role = Role.VIEWER) -> Dataset:
    """The dataset with its versions, if the caller may see it and has the role."""
    return Dataset.objects.with_newest().fetch(request.auth, pk, role)


@router.get("", response={200: list[DatasetOut], **READING})
@paginate(Newest)
def index(request: Call) -> Rows:
    """The project's datasets."""
    return Rows(Dataset.objects.with_newest().visible_to(request.auth), shown)


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
    job = once(request, Job.Kind.IMPORT, lambda key: add(request, form.cleaned_data, key))
    # Imported again since, the version has another job; its file is still the one that the call brought.
    version = DatasetVersion.objects.get(upload=Path(job.spec["upload"]).name)
    return Status(202, shown(fetch(request, version.dataset_id)))


def add(request: Call, values: dict[str, Any], key: str) -> Job:
    """The import job of the next version."""
    dataset = Dataset.objects.named(request.auth.project, values["name"], request.auth.user)
    upload = Dataset.keep_upload(values["file"])
    try:
        version = dataset.add_version(
            upload,
            values["file"].name,
            by=request.auth.user,
            prompt_column=values["prompt_column"],
            completion_column=values["completion_column"],
            group_column=values["group_column"],
            skip_bad_rows=values["skip_bad_rows"],
            idempotency_key=key,
        )
    except IntegrityError:
        upload.unlink(missing_ok=True)
        raise
    return cast("Job", version.job)


@router.post("/sample", response={202: DatasetOut, **WRITING})
def sample(request: Call, payload: Nothing | None = None) -> Status[dict[str, Any]]:
    """Import the bundled sample; where the project has it already, nothing is done twice."""
    dataset = Dataset.objects.import_sample(request.auth.project, request.auth.user)
    return Status(202, shown(fetch(request, dataset.pk)))


@router.get("/{int:pk}", response={200: DatasetOut, **READING})
def detail(request: Call, pk: int) -> dict[str, Any]:
    """One dataset, as its newest version stands."""
    return shown(fetch(request, pk))


@router.get("/{int:pk}/versions", response={200: list[VersionOut], **READING})
@paginate(Newest)
def versions(request: Call, pk: int) -> Rows:
    """All versions of a dataset, with what each import found out."""
    rows: QuerySet[DatasetVersion] = fetch(request, pk).versions.select_related("job", "dataset")
    return Rows(rows, version_shown)


@router.get("/{int:pk}/preview", response={200: PreviewAnswer, **READING})
def preview(request: Call, pk: int) -> dict[str, Any]:
    """The first rows of the newest imported version as a model reads them, chat template applied."""
    version = fetch(request, pk).newest_ready()
    if version is None:
        raise Refusal(409, "not_ready", _("No version of this dataset is imported yet."))
    return {"data": version.preview()}


@router.post("/{int:pk}/import-again", response={202: DatasetOut, **WRITING})
def import_again(request: Call, pk: int, payload: ImportAgainIn | None = None) -> Status[dict[str, Any]]:
    """Import the newest version's file once more: with other columns, or with its good rows only."""
    version = fetch(request, pk, Role.EDITOR).newest()
    once(request, Job.Kind.IMPORT, lambda key: repeat(request, version, payload or ImportAgainIn(), key))
    return Status(202, shown(fetch(request, pk)))


def repeat(request: Call, version: DatasetVersion | None, answer: ImportAgainIn, key: str) -> Job:
    """The new import job of a version whose import has failed."""
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
        raise invalid("group_column", _("What is read or learned cannot say which rows belong together."))
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
    except ImportKept as error:
        raise Refusal(409, "not_ready", str(error)) from error


def chosen_column(version: DatasetVersion, field: str, column: str | None, before: str) -> str:
    """The column that the caller names, which must exist, or the one named before."""
    if column is None:
        return before
    known = [str(one) for one in version.report.get("columns", [])]
    if column and known and column not in known:
        listed = ", ".join(known[:20])
        raise invalid(field, _("There is no such column. Choose among: %(columns)s.") % {"columns": listed})
    return column
