"""Files: uploads of rows (dataset versions), and the results of runs (metrics and adapter)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast

from django.conf import settings
from django.db.models import ProtectedError
from django.http import HttpResponseBase
from django.utils.translation import gettext as _
from ninja import File, Form, Query, Router, UploadedFile

from dashboard.api.access import Call
from dashboard.api.catalog.base_models import refuse_errors
from dashboard.api.openai.lists import After, listing, missing, number_in, seconds, wrong_after
from dashboard.api.openai.metrics import curves_of, values_at
from dashboard.api.openai.retries import start_once
from dashboard.api.refusals import Refusal, invalid, refuse_others
from dashboard.downloads import csv_file, ranged_file
from dashboard.forms.catalog.datasets import UploadForm
from dashboard.models import Adapter, Dataset, DatasetVersion, Job, Role, State, TrainingRun
from dashboard.models.accounts.project import ProjectQuerySet, parse_id
from dashboard.models.adapters.adapter import FILES_MISSING

router = Router()
UPLOAD, METRICS, ADAPTER = "file-", "file-metrics-", "file-adapter-"
PURPOSE: Final = "fine-tune"
RESULTS: Final = "fine-tune-results"
EXPIRY = ("expires_after[anchor]", "expires_after[seconds]")
LIFETIMES = range(3600, 30 * 24 * 3600 + 1)  # seconds
COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
FileLimit = Annotated[int, Query(ge=1, le=10_000)]


def upload_id(version: DatasetVersion) -> str:
    return f"{UPLOAD}{version.pk}"


def result_ids(run: TrainingRun) -> list[str]:
    """Return the ids of the result files of a run with an adapter."""
    return [f"{METRICS}{run.pk}", f"{ADAPTER}{run.pk}"]


def serialize_upload(version: Any) -> dict[str, Any]:
    """Return the file object of an upload, read with `in_use`; it is processed when its rows are imported.

    `expires_at` is null while a run or a study uses the file, because it is then not deleted.
    """
    status = {State.SUCCEEDED: "processed", State.FAILED: "error", State.CANCELLED: "error"}
    error = version.job.error if version.job else None
    return {
        "id": upload_id(version),
        "object": "file",
        "bytes": version.size_bytes,
        "created_at": seconds(version.created_at),
        "expires_at": None if version.in_use else seconds(version.expires_at),
        "filename": version.filename,
        "purpose": PURPOSE,
        "status": status.get(State(version.state), "uploaded"),
        "status_details": error["message"] if error else None,
    }


def serialize_results(adapter: Adapter) -> list[dict[str, Any]]:
    """Return the file objects of a run's results. The size of a table is known once it is written."""
    names = [(METRICS, "step_metrics.csv", 0), (ADAPTER, adapter.archive_name(), adapter.size_bytes)]
    return [
        {
            "id": f"{prefix}{adapter.run_id}",
            "object": "file",
            "bytes": size,
            "created_at": seconds(adapter.created_at),
            "filename": name,
            "purpose": RESULTS,
            "status": "processed",
        }
        for prefix, name, size in names
    ]


def uploads() -> Any:
    """Return uploads with what `serialize_upload` reads."""
    return DatasetVersion.objects.select_related("job", "dataset").with_use()


def fetch_upload(request: Call, file_id: str, field: str | None = None) -> DatasetVersion:
    """Return the dataset version of a file id, if the caller may see it."""
    pk = number_in(file_id, UPLOAD, field, _("file"))
    version = uploads().visible_to(request.auth).filter(pk=pk).first()
    if version is None:
        raise missing(field, _("file"))
    return cast("DatasetVersion", version)


def fetch_adapter(request: Call, file_id: str) -> Adapter | None:
    """Return the adapter whose results a file id names; None for the id of an upload."""
    prefix = next((name for name in (METRICS, ADAPTER) if file_id.startswith(name)), None)
    if prefix is None:
        return None
    pk = number_in(file_id, prefix, None, _("file"))
    adapter = Adapter.objects.select_related("run").visible_to(request.auth).filter(run=pk).first()
    if adapter is None:
        raise missing(None, _("file"))
    return adapter


@router.post("")
def create(request: Call, file: File[UploadedFile], purpose: Form[str]) -> dict[str, Any]:
    """Store an upload and queue its import. A file of a known name adds a version to its dataset.

    `expires_after`: the file is deleted so many seconds after its creation, or when no run or study uses it
    any more. The last file of a name takes its dataset with it.
    """
    refuse_others([*request.POST, *request.FILES], ["file", "purpose", *EXPIRY])
    if purpose != PURPOSE:
        raise invalid("purpose", _("`purpose` must be %(purpose)s.") % {"purpose": PURPOSE})
    form = UploadForm({}, request.FILES)
    refuse_errors(form)
    values, by = {**form.cleaned_data, "lifetime": lifetime(request)}, request.auth.user

    def upload(key: str) -> Job:
        return cast("Job", Dataset.objects.upload(request.auth.project, values, by, key).job)

    job = start_once(request, Job.Kind.IMPORT, upload)
    version = uploads().filter(upload=Path(job.spec["upload"]).name).first()
    if version is None:
        raise missing(None, _("file"))  # deleted between two tries of this request
    return serialize_upload(version)


def lifetime(request: Call) -> timedelta | None:
    """Return how long the file is kept if nothing uses it; None if it is kept without an end."""
    anchor, text = (request.POST.get(name) for name in EXPIRY)
    if anchor is None and text is None:
        return None
    if anchor != "created_at":
        raise invalid(EXPIRY[0], _("`expires_after[anchor]` must be created_at."))
    number = parse_id(text or "")
    if number is None or number not in LIFETIMES:
        message = _("`expires_after[seconds]` must lie between %(least)s and %(most)s.")
        raise invalid(EXPIRY[1], message % {"least": LIFETIMES[0], "most": LIFETIMES[-1]})
    return timedelta(seconds=number)


@router.get("")
def index(
    request: Call,
    purpose: Literal["fine-tune", "fine-tune-results"] = PURPOSE,
    limit: FileLimit = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: After = "",
) -> dict[str, Any]:
    """List uploads, or the results of runs."""
    refuse_others(list(request.GET), ["purpose", "limit", "order", "after"])
    if purpose == PURPOSE:
        rows = ordered(uploads().visible_to(request.auth), "pk", order, after, UPLOAD)
        return listing((serialize_upload(version) for version in rows[: limit + 1]), limit)
    run = after.removeprefix(METRICS).removeprefix(ADAPTER)
    results = ordered(Adapter.objects.visible_to(request.auth), "run", order, run, "", inclusive=True)
    return listing(results_after(results[: limit + 1], after), limit)


def ordered(
    rows: ProjectQuerySet[Any], key: str, order: str, after: str, prefix: str, *, inclusive: bool = False
) -> Any:
    """Return the rows after the cursor, in the order of their numbers."""
    sign, comparison = ("", "gt") if order == "asc" else ("-", "lt")
    if after:
        number = parse_id(after.removeprefix(prefix))
        if number is None or not after.startswith(prefix):
            raise wrong_after()
        rows = rows.filter(**{f"{key}__{comparison}{'e' if inclusive else ''}": number})
    return rows.order_by(f"{sign}{key}")


def results_after(adapters: Any, after: str) -> Iterator[dict[str, Any]]:
    """Yield the result files behind the one with this id; both of a run are neighbours."""
    files = [file for adapter in adapters for file in serialize_results(adapter)]
    skipped = next((number for number, file in enumerate(files, 1) if file["id"] == after), 0)
    yield from files[skipped:]


@router.get("/{str:file}")
def detail(request: Call, file: str) -> dict[str, Any]:
    """Return one file."""
    adapter = fetch_adapter(request, file)
    if adapter is None:
        return serialize_upload(fetch_upload(request, file))
    return next(result for result in serialize_results(adapter) if result["id"] == file)


@router.delete("/{str:file}", url_name="file-detail")
def delete(request: Call, file: str) -> dict[str, Any]:
    """Delete an upload that nothing was trained on. Results are deleted with their model."""
    if fetch_adapter(request, file):
        message = _("This file is the result of a job and stays with its model.")
        raise Refusal(409, "in_use", message, "file_id")
    version = fetch_upload(request, file)
    version.project.require(request.auth, Role.EDITOR)
    if version.job and not version.job.is_over:
        raise Refusal(409, "in_use", _("This file is still being processed. Delete it later."), "file_id")
    try:
        version.remove()
    except ProtectedError as error:
        message = _("A job uses this file, so it cannot be deleted.")
        raise Refusal(409, "in_use", message, "file_id") from error
    return {"id": file, "object": "file", "deleted": True}


@router.get("/{str:file}/content")
def content(request: Call, file: str) -> HttpResponseBase:
    """Return the bytes of a file: an upload, the metrics of a run as CSV, or its adapter as zip."""
    adapter = fetch_adapter(request, file)
    if adapter is None:
        return upload_content(request, fetch_upload(request, file))
    if file.startswith(METRICS):
        return metrics_file(adapter.run)
    try:
        return ranged_file(request, adapter.archive(), adapter.archive_name())
    except FileNotFoundError as error:
        raise Refusal(404, "files_missing", str(FILES_MISSING)) from error


def upload_content(request: Call, version: DatasetVersion) -> HttpResponseBase:
    """Return the uploaded bytes, which are deleted as soon as their rows are imported."""
    path = Path(settings.UPLOAD_DIR) / version.upload
    try:
        return ranged_file(request, path, version.filename)
    except FileNotFoundError as error:
        message = _("The rows of this file are imported, and its upload is deleted. Keep your own copy.")
        raise Refusal(404, "content_deleted", message) from error


def metrics_file(run: TrainingRun) -> HttpResponseBase:
    """Return loss and token accuracy of a run by step."""
    curves = curves_of(run)
    steps = sorted({*curves["train_loss"], *curves["valid_loss"]})
    rows = ([step, *values_at(curves, step).values()] for step in steps)
    return csv_file("step_metrics.csv", [COLUMNS, *rows])
