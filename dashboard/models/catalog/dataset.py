"""Datasets and their immutable, content-hashed versions."""

from __future__ import annotations

import json
import secrets
import shutil
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.files.uploadedfile import TemporaryUploadedFile, UploadedFile
from django.db import IntegrityError, models, transaction
from django.db.models.functions import Now
from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project, ProjectQuerySet
from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.catalog.metrics import main_metric
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import TERMINAL, State
from workers.contract.specs import SPLITS, DataSpec, ImportSpec, to_dict

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

SAMPLE_FILE = Path(__file__).parents[2] / "samples" / "support_messages.jsonl"
SAMPLE_NAME = "Support messages (sample)"
# The engine's names of row formats -> labels.
SHAPES = {
    "messages": _("Chat"),
    "sharegpt": _("Chat (ShareGPT)"),
    "prompt_completion": _("Prompt and completion"),
    "instruction": _("Instruction and output"),
    "columns": _("Chosen columns"),
    "text": _("Plain text"),
}


class DatasetQuerySet(ProjectQuerySet["Dataset"]):
    """Datasets with their versions and usage."""

    def with_newest(self) -> DatasetQuerySet:
        """Prefetch versions and their jobs."""
        return self.prefetch_related(
            models.Prefetch("versions", DatasetVersion.objects.select_related("job").order_by("-version"))
        )

    def with_use(self) -> DatasetQuerySet:
        """Annotate `run_count`, the runs that use any version."""
        # Counted apart: joined, each run would meet each validated run.
        same = Dataset.objects.filter(pk=models.OuterRef("pk")).order_by()
        validated = same.annotate(count=models.Count("versions__validated_runs")).values("count")
        run_count = models.Count("versions__training_runs", distinct=True)
        return self.annotate(run_count=run_count + models.Subquery(validated))

    def named(self, project: Project, name: str, by: User | None) -> Dataset:
        """Return the project's dataset of that name; create it if it does not exist."""
        dataset, _created = self.get_or_create(project=project, name=name, defaults={"created_by": by})
        return dataset

    def upload(
        self, project: Project, values: dict[str, Any], by: User | None, idempotency_key: str
    ) -> DatasetVersion:
        """Store an uploaded file and queue its import; `values` are those of a valid upload form.

        With a `lifetime` in it, the version is deleted after that time unless something uses it.
        Raises IntegrityError if another request with this key was faster; the file is then deleted.
        """
        dataset = self.named(project, values["name"], by)
        path = Dataset.store_upload(values["file"])
        columns = {name: values[name] for name in ("prompt_column", "completion_column", "group_column")}
        try:
            return dataset.add_version(
                path,
                values["file"].name,
                by=by,
                skip_bad_rows=values["skip_bad_rows"],
                lifetime=values.get("lifetime"),
                idempotency_key=idempotency_key,
                **columns,
            )
        except IntegrityError:
            path.unlink(missing_ok=True)
            raise

    def import_sample(self, project: Project, by: User | None) -> Dataset:
        """Queue the import of the bundled sample, unless it is imported or queued; return its dataset."""
        with transaction.atomic():
            # The UPDATE locks the project, so that two clicks at once start one import.
            Project.objects.filter(pk=project.pk).update(name=project.name)
            dataset = self.named(project, SAMPLE_NAME, by)
            newest = dataset.newest()
            if newest is None or newest.state in (State.FAILED, State.CANCELLED):
                upload = new_upload_path()
                shutil.copyfile(SAMPLE_FILE, upload)
                dataset.add_version(upload, SAMPLE_FILE.name, by=by)
        return dataset


class Dataset(models.Model):
    """A named series of versions of a project's rows."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="datasets")
    name = models.CharField(_("name"), max_length=120)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = DatasetQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(fields=["project", "name"], name="dataset_name_once_per_project")
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("dataset-detail", args=[self.pk])

    @staticmethod
    def store_upload(file: UploadedFile[Any]) -> Path:
        """Move a received file to a random name under UPLOAD_DIR and return its path."""
        path = new_upload_path()
        if isinstance(file, TemporaryUploadedFile):
            # Django spooled it on the same volume, so a rename spares a second copy of gigabytes.
            shutil.move(file.temporary_file_path(), path)
        else:
            with path.open("xb") as target:
                target.writelines(file.chunks())
        path.chmod(0o640)
        return path

    def newest(self) -> DatasetVersion | None:
        """Return the last uploaded version in any state."""
        # Sorted in Python, so that prefetched versions are used.
        return max(self.versions.all(), key=lambda version: version.version, default=None)

    def newest_ready(self) -> DatasetVersion | None:
        """Return the newest imported version."""
        ready = [version for version in self.versions.all() if version.is_ready]
        return max(ready, key=lambda version: version.version, default=None)

    def add_version(
        self,
        upload: Path,
        filename: str,
        *,
        by: User | None,
        prompt_column: str = "",
        completion_column: str = "",
        group_column: str = "",
        skip_bad_rows: bool = False,
        seed: int = 42,
        lifetime: timedelta | None = None,
        idempotency_key: str = "",
    ) -> DatasetVersion:
        """Create the next version from a file under UPLOAD_DIR and queue its import."""
        with transaction.atomic():
            # The UPDATE locks the row, so that two uploads of one name get different numbers.
            Dataset.objects.filter(pk=self.pk).update(name=self.name)
            last = self.versions.aggregate(last=models.Max("version"))["last"] or 0
            version = DatasetVersion.objects.create(
                project=self.project,
                dataset=self,
                version=last + 1,
                upload=upload.name,
                filename=Path(filename).name[:255],
                size_bytes=upload.stat().st_size,
                prompt_column=prompt_column,
                completion_column=completion_column,
                group_column=group_column,
                skip_bad_rows=skip_bad_rows,
                seed=seed,
                created_by=by,
            )
            version.expires_at = version.created_at + lifetime if lifetime else None
            version.submit_import(by, idempotency_key=idempotency_key)
        return version


class ImportNotFailed(ValueError):
    """A version that is imported, queued or being imported cannot be imported again."""


class DatasetVersionQuerySet(ProjectQuerySet["DatasetVersion"]):
    """Dataset versions by state."""

    def ready(self) -> DatasetVersionQuerySet:
        return self.filter(job__state=State.SUCCEEDED)

    def with_use(self) -> DatasetVersionQuerySet:
        """Annotate `in_use`, whether a run or a study needs its rows."""
        unused = models.Q(training_runs=None, validated_runs=None, studies=None)
        same = self.model.objects.order_by().filter(unused, pk=models.OuterRef("pk"))
        return self.annotate(in_use=~models.Exists(same))

    def expired(self) -> DatasetVersionQuerySet:
        """Filter versions that nothing uses or imports and whose time is over."""
        unused = self.filter(training_runs=None, validated_runs=None, studies=None)
        return unused.filter(expires_at__lt=Now(), job__state__in=TERMINAL)


class DatasetVersion(models.Model):
    """One upload with its import report; the splits are Parquet files in a folder named by their hash."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="dataset_versions")
    dataset = models.ForeignKey(Dataset, models.CASCADE, related_name="versions")
    version = models.PositiveIntegerField()
    upload = models.CharField(max_length=100)  # file name under UPLOAD_DIR
    filename = models.CharField(max_length=255)  # the uploaded file's own name; never opened
    size_bytes = models.BigIntegerField()
    prompt_column = models.CharField(max_length=200, blank=True)
    completion_column = models.CharField(max_length=200, blank=True)
    # Rows with the same value in it stay in one split; "" groups near-duplicate prompts instead.
    group_column = models.CharField(max_length=200, blank=True)
    skip_bad_rows = models.BooleanField(default=False)
    seed = models.BigIntegerField(default=42)
    sha256 = models.CharField(max_length=64, blank=True)
    # Checksum of the test rows; an evaluation refuses rows with another one.
    test_sha256 = models.CharField(max_length=64, blank=True)
    rows = models.PositiveIntegerField(null=True, blank=True)
    splits = models.JSONField(default=dict)
    report = models.JSONField(default=dict)
    job = models.ForeignKey(Job, models.SET_NULL, null=True, blank=True, related_name="dataset_versions")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    # When it is deleted if no run or study uses it then; None keeps it.
    expires_at = models.DateTimeField(null=True, blank=True)

    objects = DatasetVersionQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [models.UniqueConstraint(fields=["dataset", "version"], name="dataset_version_once")]

    def __str__(self) -> str:
        return f"{self.dataset.name}:v{self.version}"

    def get_absolute_url(self) -> str:
        return f"{self.dataset.get_absolute_url()}?version={self.version}"

    def submit_import(self, by: User | None, *, idempotency_key: str = "") -> Job:
        """Queue the import of the upload with the present columns and options."""
        spec = ImportSpec(
            upload=str(settings.UPLOAD_DIR / self.upload),
            filename=self.filename,
            tokenizer=str(BaseModel.objects.ensure_bundled().local_folder()),
            prompt_column=self.prompt_column,
            completion_column=self.completion_column,
            group_column=self.group_column,
            skip_bad_rows=self.skip_bad_rows,
            seed=self.seed,
        )
        self.job = Job.objects.submit(
            Job.Kind.IMPORT, to_dict(spec), project=self.project, by=by, idempotency_key=idempotency_key
        )
        self.save()
        return self.job

    def import_again(
        self,
        by: User | None,
        *,
        prompt_column: str = "",
        completion_column: str = "",
        group_column: str = "",
        skip_bad_rows: bool = False,
        idempotency_key: str = "",
    ) -> Job:
        """Queue another import of the upload with other columns or options.

        Raises ImportNotFailed unless the last import has failed.
        """
        with transaction.atomic():
            # Two requests may come at once: the second finds an import that has not failed.
            self.job = DatasetVersion.objects.select_for_update().get(pk=self.pk).job
            if self.state != State.FAILED:
                raise ImportNotFailed(
                    "Only a failed import can be repeated: an imported version never changes."
                )
            self.prompt_column, self.completion_column = prompt_column, completion_column
            self.group_column = group_column
            self.skip_bad_rows = skip_bad_rows
            return self.submit_import(by, idempotency_key=idempotency_key)

    def record_import(self, report: dict[str, Any]) -> None:
        """Store the report of a finished import."""
        self.report = report
        self.sha256 = report["sha256"]
        self.test_sha256 = report["test_sha256"]
        self.rows = report["rows"]
        self.splits = report["splits"]
        self.save(update_fields=["report", "sha256", "test_sha256", "rows", "splits"])

    def freeze_test_rows(self, test_sha256: str) -> None:
        """Store the checksum of the test rows if there is none yet."""
        DatasetVersion.objects.filter(pk=self.pk, test_sha256="").update(test_sha256=test_sha256)

    def record_problems(self, report: dict[str, Any]) -> None:
        """Store the report of a failed import: its bad rows, or the columns to choose from."""
        self.report = report
        self.save(update_fields=["report"])

    @property
    def state(self) -> str:
        """Return the state of its import job."""
        return self.job.state if self.job else State.QUEUED

    @property
    def is_ready(self) -> bool:
        """Return whether it is imported, so that runs can use it."""
        return self.state == State.SUCCEEDED

    @property
    def shape(self) -> str:
        """Return the label of the recognised row format; "" before the import."""
        shape = str(self.report.get("shape", ""))
        return str(SHAPES.get(shape, shape))

    @property
    def main_metric(self) -> str:
        """Return the metric that fits the kind of its answers."""
        return main_metric(str(self.report.get("answers", "")))

    @property
    def problems(self) -> list[dict[str, Any]]:
        """Return the first 100 invalid rows: {row, column, message}."""
        return list(self.report.get("problems", []))

    @property
    def split_notes(self) -> list[str]:
        """Return sentences on rows that were grouped or left out of a split."""
        return list(self.report.get("split_notes", []))

    @property
    def group_columns(self) -> list[dict[str, Any]]:
        """Return columns with repeating values, which may group rows: {name, values}."""
        return list(self.report.get("group_columns", []))

    @property
    def needs_columns(self) -> bool:
        """Return whether the import failed because the columns were not recognised."""
        return bool(self.job and self.state == State.FAILED and self.job.error_code == "columns_unclear")

    @property
    def can_skip_bad_rows(self) -> bool:
        """Return whether only bad rows made the import fail, and enough good ones are left."""
        enough = self.report.get("rows", 0) >= len(SPLITS)
        return bool(self.problems) and enough and not self.needs_columns

    def remove(self) -> None:
        """Delete the row, its upload, and its dataset if no version is left.

        The clean-up deletes the rows' folder if no version shares it. Raises ProtectedError if a run, a study
        or an evaluation uses the version.
        """
        with transaction.atomic():
            # Locked, so that no upload adds a version to a dataset that is being deleted.
            dataset = Dataset.objects.select_for_update().get(pk=self.dataset_id)
            self.delete()
            if not dataset.versions.exists():
                dataset.delete()
        self.delete_upload()

    def delete_upload(self) -> None:
        """Delete the uploaded file, which the imported rows replace."""
        (Path(settings.UPLOAD_DIR) / self.upload).unlink(missing_ok=True)

    def folder(self) -> Path:
        """Return the folder of its splits; versions with equal content share one."""
        return Path(settings.DATA_DIR) / "datasets" / self.sha256

    def preview(self) -> list[dict[str, Any]]:
        """Return rows rendered with the chat template: {row, text, segments, tokens}."""
        path = self.folder() / "preview.json"
        return list(json.loads(path.read_text())) if self.sha256 and path.exists() else []

    def spec(self) -> DataSpec:
        """Return the spec by which the engine reads it."""
        return DataSpec(
            path=str(self.folder()),
            sha256=self.sha256,
            name=self.dataset.name,
            version=self.version,
            test_sha256=self.test_sha256,
        )


def new_upload_path() -> Path:
    """Return an unused, unguessable path under UPLOAD_DIR."""
    return Path(settings.UPLOAD_DIR) / secrets.token_hex(16)
