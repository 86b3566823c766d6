"""Exports: a base model with an adapter merged in, as one file that is kept for days."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models, transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models.accounts.project import Project, ProjectQuerySet
from dashboard.models.adapters.adapter import Adapter
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import State, db_now
from workers.contract.specs import ExportSpec, to_dict
from workers.forecasting.export_cost import ExportForecast, forecast_export
from workers.serving.gguf_adapter import ARCHITECTURES

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

GGUF = "gguf"


class ExportRefused(Exception):
    """The export cannot start; the text says why. `code` is the API's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ExportQuerySet(ProjectQuerySet["Export"]):
    """Exports by age and state."""

    def start(self, adapter: Adapter, format: str, by: User | None, *, idempotency_key: str = "") -> Export:
        """Queue an export, or return the one of this adapter and format that is open or finished.

        Raises ExportRefused.
        """
        with transaction.atomic():
            # Two requests may come at once: the second gets the first one's export.
            adapter.project.hold()
            known = self.filter(adapter=adapter, format=format).select_related("job").first()
            if known and (not known.job.is_over or known.is_finished):
                return known
            forecast = check_export(adapter, format)
            if known:
                known.delete()
            stem = adapter.archive_name().removesuffix(".zip")
            spec = ExportSpec(
                base=adapter.base_model.spec(),
                adapter=str(adapter.path()),
                name=f"{stem}-{format.removeprefix('gguf-')}",
                format=format,
            )
            job = Job.objects.submit(
                Job.Kind.EXPORT,
                to_dict(spec),
                project=adapter.project,
                by=by,
                idempotency_key=idempotency_key,
            )
            return self.create(
                project=adapter.project,
                adapter=adapter,
                job=job,
                format=format,
                expected_bytes=forecast.file_bytes,
            )

    def expired(self) -> ExportQuerySet:
        """Filter those that ended longer ago than exports are kept."""
        return self.filter(job__finished_at__lt=db_now(-timedelta(days=settings.KEEP_EXPORTS_DAYS)))


class Export(models.Model):
    """One file, in a folder that is named after the row and the file's content; "" until it is published."""

    class Format(models.TextChoices):
        FLOAT32 = "float32", gettext_lazy("Safetensors, float32")
        BFLOAT16 = "bfloat16", gettext_lazy("Safetensors, bfloat16")
        GGUF_F16 = "gguf-f16", gettext_lazy("GGUF, F16")
        GGUF_Q8_0 = "gguf-q8_0", gettext_lazy("GGUF, Q8_0")

    project = models.ForeignKey(Project, models.CASCADE, related_name="exports")
    adapter = models.ForeignKey(Adapter, models.CASCADE, related_name="exports")
    job = models.ForeignKey(Job, models.CASCADE, related_name="exports")
    format = models.CharField(max_length=10, choices=Format.choices)
    expected_bytes = models.BigIntegerField()
    folder = models.CharField(max_length=64, blank=True)  # below DATA_DIR/exports
    filename = models.CharField(max_length=255, blank=True)
    sha256 = models.CharField(max_length=64, blank=True)
    size_bytes = models.BigIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ExportQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(fields=["adapter", "format"], name="export_once_per_format"),
            models.CheckConstraint(
                condition=models.Q(format__in=["float32", "bfloat16", "gguf-f16", "gguf-q8_0"]),
                name="export_format_known",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.adapter} ({self.get_format_display()})"

    def get_absolute_url(self) -> str:
        return f"{self.adapter.get_absolute_url()}#exports"

    @property
    def is_finished(self) -> bool:
        """Return whether there is a file to download."""
        return self.job.state == State.SUCCEEDED and bool(self.folder)

    @property
    def expires_at(self) -> datetime | None:
        """Return when it is deleted; None while its job is open."""
        ended = self.job.finished_at
        return ended + timedelta(days=settings.KEEP_EXPORTS_DAYS) if ended else None

    def folder_of(self, files: dict[str, dict[str, Any]]) -> str:
        """Return the name of the folder with these files; no two exports share a folder."""
        return hashlib.sha256(json.dumps([self.pk, files], sort_keys=True).encode()).hexdigest()

    def record(self, files: dict[str, dict[str, Any]]) -> None:
        """Store the published file."""
        ((name, facts),) = files.items()
        self.folder, self.filename = self.folder_of(files), name
        self.sha256, self.size_bytes = facts["sha256"], facts["bytes"]
        self.save(update_fields=["folder", "filename", "sha256", "size_bytes"])

    def path(self) -> Path:
        """Return the file."""
        return Path(settings.DATA_DIR) / "exports" / self.folder / self.filename

    def remove(self) -> None:
        """Delete the row, then the file. Raises ExportRefused while its job is open."""
        if not self.job.is_over:
            raise ExportRefused("still_running", _("Stop this export before you delete it."))
        with transaction.atomic():
            if self.folder:
                folder = self.path().parent
                # What remains after a crash is an orphan, which the dispatcher deletes.
                transaction.on_commit(lambda: shutil.rmtree(folder, ignore_errors=True))
            self.delete()


def export_forecast(adapter: Adapter, format: str) -> ExportForecast:
    """Return the size and the memory of an export of the adapter."""
    base, folder = adapter.base_model, Path(adapter.base_model.path)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        tokenizer = (adapter.path() / "tokenizer.json").stat().st_size
    except (OSError, ValueError):
        stored, tokenizer = "float32", 0
    return forecast_export(
        format,
        base.parameters or 0,
        stored_dtype=stored,
        changed=changed_parameters(adapter),
        tokenizer_bytes=tokenizer,
    )


def changed_parameters(adapter: Adapter) -> int:
    """Return the parameters of the base model's layers that the adapter changes, as far as they are known."""
    census, names = adapter.base_model.census or {}, set(adapter.run.spec["target"]["target_modules"])
    return sum(
        group["d_in"] * group["d_out"] * max(1, len(group["layers"])) * group["experts"]
        for group in census.get("groups", [])
        if group["pattern"].rpartition(".")[2] in names
    )


def gguf_refusal(adapter: Adapter) -> str:
    """Return the reason why the adapter's base model has no GGUF form; "" if it may have one."""
    if adapter.base_model.model_type in ARCHITECTURES:
        return ""
    return _("GGUF is available for Llama, Mistral and Qwen base models.")


def check_export(adapter: Adapter, format: str) -> ExportForecast:
    """Return the forecast of an export that can start; raises ExportRefused."""
    if format.startswith(GGUF) and (reason := gguf_refusal(adapter)):
        raise ExportRefused("no_gguf", reason)
    forecast = export_forecast(adapter, format)
    free = shutil.disk_usage(settings.DATA_DIR).free
    if free < forecast.file_bytes:
        raise ExportRefused(
            "disk_full",
            _("This export needs about %(needs).1f GB of disk space, and %(free).1f GB are free.")
            % {"needs": forecast.file_bytes / 1e9, "free": free / 1e9},
        )
    return forecast
