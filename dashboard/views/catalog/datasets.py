"""Datasets: list, upload, sample, page with the check report, and repeated import."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.db import IntegrityError
from django.db.models import Q, QuerySet
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.text import slugify
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django_htmx.http import HttpResponseClientRefresh

from dashboard.charts.curves import length_bars
from dashboard.forms.catalog.datasets import ColumnsForm, UploadForm
from dashboard.gate import Request
from dashboard.models import (
    Dataset,
    DatasetVersion,
    ImportNotFailed,
    Job,
    Project,
    Role,
    State,
    TrainingRun,
)
from dashboard.presenters.queue_board import queue_position_context
from dashboard.views.training.launch import key_of
from workers.contract.errors import IMPORT, ColumnsUnclear, DataError, advice

# Longest part of a row in the preview; a row may hold a megabyte.
PREVIEW_LETTERS = 1500
RUNS_SHOWN = 10
LOG_LINES = 50


@require_GET
def index(request: Request) -> HttpResponse:
    """List the project's datasets, newest first."""
    mine = Dataset.objects.with_newest().with_use().visible_to(request.user).filter(project=request.project)
    datasets, following = mine.page(request.GET.get("cursor"))
    return render(request, "catalog/datasets/index.html", {"datasets": datasets, "next": following})


@require_http_methods(["GET", "POST"])
def create(request: Request) -> HttpResponse:
    """Upload a file as a new dataset or as the next version of one, and queue its import."""
    request.project.require(request.user, Role.EDITOR)
    if request.method == "POST":
        form = UploadForm(request.POST, request.FILES)
    else:
        name, group_column = request.GET.get("name", "")[:120], request.GET.get("group_column", "")[:200]
        form = UploadForm(initial={"name": name, "group_column": group_column})
    if not form.is_valid():
        context = {"form": form, "limit": settings.UPLOAD_LIMIT_BYTES}
        return render(request, "catalog/datasets/create.html", context, status=422 if form.is_bound else 200)
    return redirect(uploaded(request, form))


def uploaded(request: Request, form: UploadForm) -> DatasetVersion:
    """Return the version that the form creates, or created when it was sent before."""
    key = key_of_upload(form)
    if earlier := uploaded_with(request.project, key):
        return earlier
    try:
        return Dataset.objects.upload(request.project, form.cleaned_data, request.user, key)
    except IntegrityError:
        # The other request of a double click was faster.
        faster = uploaded_with(request.project, key)
        if faster is None:
            raise
        return faster


def key_of_upload(form: UploadForm) -> str:
    """Return the form's key with a hash of its content: another file under the same key is another upload."""
    key = key_of(form)
    if not key:
        return ""
    digest = hashlib.sha256()
    for name, value in sorted(form.cleaned_data.items()):
        digest.update(f"{name}={value}\n".encode())
    for chunk in form.cleaned_data["file"].chunks():
        digest.update(chunk)
    return f"{key}:{digest.hexdigest()}"


def uploaded_with(project: Project, key: str) -> DatasetVersion | None:
    """Return the version that an earlier form with this key created, if any."""
    job = Job.objects.find_by_idempotency_key(project, key)
    if job is None or job.kind != Job.Kind.IMPORT:
        return None
    upload = Path(job.spec["upload"]).name
    return DatasetVersion.objects.filter(project=project, upload=upload).select_related("dataset").first()


@require_POST
def sample(request: Request) -> HttpResponse:
    """Import the bundled sample, unless the project has it; open its page."""
    request.project.require(request.user, Role.EDITOR)
    return redirect(Dataset.objects.import_sample(request.project, request.user))


@require_GET
def detail(request: Request, pk: int) -> HttpResponse:
    """Show one version of a dataset, with its import report."""
    dataset = Dataset.objects.fetch(request.user, pk)
    version = version_of(dataset, request.GET.get("version"))
    # Other columns may help a failed import whose columns are known.
    can_choose = version and version.state == State.FAILED and version.report.get("columns")
    form = ColumnsForm(version=version) if version and can_choose else None
    return render(request, "catalog/datasets/detail.html", detail_context(request, dataset, version, form))


@require_GET
def progress(request: Request, pk: int) -> HttpResponse:
    """Show the progress of the import; reload the page when it is over."""
    dataset = Dataset.objects.fetch(request.user, pk)
    version = version_of(dataset, request.GET.get("version"))
    if version is None or version.job is None or version.job.is_over:
        return HttpResponseClientRefresh()
    context = {
        "dataset": dataset,
        "version": version,
        "versions": versions_of(dataset),
        "live": True,
        "may_edit": may_edit(request, dataset),
        **queue_position_context(version.job),
    }
    return render(request, "catalog/datasets/_progress.html", context)


@require_POST
def import_again(request: Request, pk: int) -> HttpResponse:
    """Import a failed version again, with the chosen columns or without its invalid rows."""
    dataset = Dataset.objects.fetch(request.user, pk, Role.EDITOR)
    version = version_of(dataset, request.POST.get("version"))
    if version is None or version.state != State.FAILED:
        messages.warning(request, _("Only a failed import can be repeated. Upload the file again instead."))
        return redirect(version or dataset)
    answer: dict[str, Any] = {
        "prompt_column": version.prompt_column,
        "completion_column": version.completion_column,
        "group_column": version.group_column,
    }
    if "completion_column" in request.POST:
        form = ColumnsForm(request.POST, version=version)
        if not form.is_valid():
            context = detail_context(request, dataset, version, form)
            return render(request, "catalog/datasets/detail.html", context, status=422)
        answer = form.cleaned_data
    else:
        answer["skip_bad_rows"] = "skip_bad_rows" in request.POST or version.skip_bad_rows
    # Another request may have been faster; the page then shows its import.
    with contextlib.suppress(ImportNotFailed):
        version.import_again(request.user, **answer)
    return redirect(version)


@require_GET
def report(request: Request, pk: int) -> HttpResponse:
    """Download the import report."""
    dataset = Dataset.objects.fetch(request.user, pk)
    version = version_of(dataset, request.GET.get("version"))
    if version is None or not version.report:
        raise Http404
    name = f"{slugify(dataset.name) or 'dataset'}-v{version.version}-report.json"
    return HttpResponse(
        json.dumps(version.report, ensure_ascii=False, indent=2),
        content_type="application/json",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def version_of(dataset: Dataset, number: str | None) -> DatasetVersion | None:
    """Return the version of that number, or the newest for none. Raises Http404 for an unknown number."""
    versions = dataset.versions.select_related("job", "created_by", "dataset")
    if not number:
        return versions.order_by("-version").first()
    version = versions.filter(version=int(number)).first() if number.isdecimal() and len(number) < 9 else None
    if version is None:
        raise Http404
    return version


def versions_of(dataset: Dataset) -> QuerySet[DatasetVersion]:
    """Return all versions for the list on the page, newest first."""
    return dataset.versions.select_related("job").defer("report").order_by("-version")


def may_edit(request: Request, dataset: Dataset) -> bool:
    """Return whether the user may edit this dataset; its project may not be the open one."""
    return request.user.has_role(Role.EDITOR, dataset.project_id)


def detail_context(
    request: Request, dataset: Dataset, version: DatasetVersion | None, form: ColumnsForm | None
) -> dict[str, Any]:
    """Return the context of a dataset's page at one version."""
    report = version.report if version else {}
    columns = report.get("columns", [])
    versions = list(dataset.versions.values_list("pk", flat=True))
    # Ids first: databases would sort whole rows.
    uses = Q(dataset_version__in=versions) | Q(validation_version__in=versions)
    runs = TrainingRun.objects.visible_to(request.user).filter(uses)
    newest = list(runs.order_by("-pk").values_list("pk", flat=True)[:RUNS_SHOWN])
    return {
        "dataset": dataset,
        "may_edit": may_edit(request, dataset),
        "version": version,
        "versions": versions_of(dataset),
        "form": form,
        **queue_position_context(version.job if version else None),
        **failure_context(version),
        "first_rows": [[row.get(column, "") for column in columns] for row in report.get("first_rows", [])],
        "lengths": length_bars(report.get("token_lengths", {})),
        "preview": [shortened(row) for row in version.preview()] if version else [],
        "runs": TrainingRun.objects.with_facts().filter(pk__in=newest),
        "more_runs": max(0, runs.count() - RUNS_SHOWN),
    }


def failure_context(version: DatasetVersion | None) -> dict[str, str]:
    """Return advice after a failure, and the end of the log unless the rows caused it."""
    job = version.job if version else None
    if job is None or job.state != State.FAILED:
        return {}
    about_rows = job.error_code in (DataError.code, ColumnsUnclear.code)
    return {"advice": advice(job.error_code, IMPORT), "log": "" if about_rows else job.log_tail(LOG_LINES)}


def shortened(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the preview with long parts cut."""
    segments = [
        {**part, "text": part["text"][:PREVIEW_LETTERS], "more": max(0, len(part["text"]) - PREVIEW_LETTERS)}
        for part in row["segments"]
    ]
    return {**row, "segments": segments}
