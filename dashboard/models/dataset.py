"""Datasets and their immutable, content-hashed versions."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.files.uploadedfile import TemporaryUploadedFile, UploadedFile
from django.db import models, transaction
from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from dashboard.models.base_model import BaseModel
from dashboard.models.job import Job
from dashboard.models.job_state import State
from dashboard.models.metrics import main_metric
from dashboard.models.project import Project, ProjectQuerySet
from workers.specs import SPLITS, DataSpec, ImportSpec, to_dict

if TYPE_CHECKING:
    from dashboard.models.user import User

SAMPLE_FILE = Path(__file__).parent.parent / "samples" / "support_messages.jsonl"
SAMPLE_NAME = "Support messages (example)"
# The engine's names of shapes in words.
SHAPES = {
    "messages": _("Chat"),
    "sharegpt": _("Chat (ShareGPT)"),
    "prompt_completion": _("Prompt and completion"),
    "instruction": _("Instruction and output"),
    "columns": _("Chosen columns"),
    "text": _("Plain text"),
}


class DatasetQuerySet(ProjectQuerySet["Dataset"]):
    """Datasets with what a list shows."""

    def with_newest(self) -> DatasetQuerySet:
        """Versions and their jobs fetched in two queries."""
        return self.prefetch_related(
            models.Prefetch("versions", DatasetVersion.objects.select_related("job").order_by("-version"))
        )

    def with_use(self) -> DatasetQuerySet:
        """How many runs used any version, as `run_count`."""
        return self.annotate(run_count=models.Count("versions__training_runs", distinct=True))

    def named(self, project: Project, name: str, by: User | None) -> Dataset:
        """The project's dataset of that name; a new upload becomes its next version."""
        dataset, _created = self.get_or_create(project=project, name=name, defaults={"created_by": by})
        return dataset

    def import_sample(self, project: Project, by: User | None) -> Dataset:
        """The project's copy of the bundled sample, its import queued unless it is there or on its way."""
        with transaction.atomic():
            # Touching the project makes two clicks at once find one import, not start two.
            Project.objects.filter(pk=project.pk).update(name=project.name)
            dataset = self.named(project, SAMPLE_NAME, by)
            newest = dataset.newest()
            if newest is None or newest.state in (State.FAILED, State.CANCELLED):
                upload = new_upload_path()
                shutil.copyfile(SAMPLE_FILE, upload)
                dataset.add_version(upload, SAMPLE_FILE.name, by=by)
        return dataset


class Dataset(models.Model):
    """A name under which a project keeps versions of its rows."""

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
        """Its page."""
        return reverse("dataset-detail", args=[self.pk])

    @staticmethod
    def keep_upload(file: UploadedFile[Any]) -> Path:
        """Move a received file to a random name under UPLOAD_DIR, where imports find it."""
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
        """The version uploaded last, whatever became of it."""
        # Sorted here, so that a prefetched list is used.
        return max(self.versions.all(), key=lambda version: version.version, default=None)

    def newest_ready(self) -> DatasetVersion | None:
        """The newest version that a run can use."""
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
        idempotency_key: str = "",
    ) -> DatasetVersion:
        """The next version, with its import job queued. `upload` already lies under UPLOAD_DIR."""
        with transaction.atomic():
            # Touching the row makes two uploads of one name take their numbers one after the other.
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
            version.submit_import(by, idempotency_key=idempotency_key)
        return version


class ImportKept(ValueError):
    """The version is imported, or its import is under way: it cannot be imported again."""


class DatasetVersionQuerySet(ProjectQuerySet["DatasetVersion"]):
    """Versions by what can be done with them."""

    def ready(self) -> DatasetVersionQuerySet:
        """Imported ones."""
        return self.filter(job__state=State.SUCCEEDED)


class DatasetVersion(models.Model):
    """One upload, imported: canonical Parquet splits under their content hash, and the import's report."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="dataset_versions")
    dataset = models.ForeignKey(Dataset, models.CASCADE, related_name="versions")
    version = models.PositiveIntegerField()
    upload = models.CharField(max_length=100)  # file name under UPLOAD_DIR
    filename = models.CharField(max_length=255)  # as the person called it; shown, never opened
    size_bytes = models.BigIntegerField()
    prompt_column = models.CharField(max_length=200, blank=True)
    completion_column = models.CharField(max_length=200, blank=True)
    # Rows with the same value in it stay in one split; "" keeps those together that ask nearly the same.
    group_column = models.CharField(max_length=200, blank=True)
    skip_bad_rows = models.BooleanField(default=False)
    seed = models.BigIntegerField(default=42)
    sha256 = models.CharField(max_length=64, blank=True)
    # Of its test rows: what an evaluation reads must have it. Older versions get it when first scored.
    test_sha256 = models.CharField(max_length=64, blank=True)
    rows = models.PositiveIntegerField(null=True, blank=True)
    splits = models.JSONField(default=dict)
    report = models.JSONField(default=dict)
    job = models.ForeignKey(Job, models.SET_NULL, null=True, blank=True, related_name="dataset_versions")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = DatasetVersionQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [models.UniqueConstraint(fields=["dataset", "version"], name="dataset_version_once")]

    def __str__(self) -> str:
        return f"{self.dataset.name}:v{self.version}"

    def get_absolute_url(self) -> str:
        """Its dataset's page, at this version."""
        return f"{self.dataset.get_absolute_url()}?version={self.version}"

    def submit_import(self, by: User | None, *, idempotency_key: str = "") -> Job:
        """Queue the import of the upload as it is described now."""
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
        """Answer the question that a failed import asked, and import the same upload once more."""
        with transaction.atomic():
            # Two people may answer at once: the second finds an import that has not failed.
            self.job = DatasetVersion.objects.select_for_update().get(pk=self.pk).job
            if self.state != State.FAILED:
                raise ImportKept("Only a failed import can be repeated: an imported version never changes.")
            self.prompt_column, self.completion_column = prompt_column, completion_column
            self.group_column = group_column
            self.skip_bad_rows = skip_bad_rows
            return self.submit_import(by, idempotency_key=idempotency_key)

    def record_import(self, report: dict[str, Any]) -> None:
        """Store what the import job found; `folder()` holds the splits from now on."""
        self.report = report
        self.sha256 = report["sha256"]
        self.test_sha256 = report["test_sha256"]
        self.rows = report["rows"]
        self.splits = report["splits"]
        self.save(update_fields=["report", "sha256", "test_sha256", "rows", "splits"])

    def freeze_test_rows(self, test_sha256: str) -> None:
        """Keep the checksum of test rows that had none, so that they stay what they are now."""
        DatasetVersion.objects.filter(pk=self.pk, test_sha256="").update(test_sha256=test_sha256)

    def record_problems(self, report: dict[str, Any]) -> None:
        """Store the report of an import that failed: it names the rows, or the columns to choose from."""
        self.report = report
        self.save(update_fields=["report"])

    @property
    def state(self) -> str:
        """Its import job's state."""
        return self.job.state if self.job else State.QUEUED

    @property
    def is_ready(self) -> bool:
        """Whether a run can use it."""
        return self.state == State.SUCCEEDED

    @property
    def shape(self) -> str:
        """What its rows were recognised as, in words; "" while nobody knows."""
        found = str(self.report.get("shape", ""))
        return str(SHAPES.get(found, found))

    @property
    def main_metric(self) -> str:
        """Return the metric that fits the kind of its answers."""
        return main_metric(str(self.report.get("answers", "")))

    @property
    def problems(self) -> list[dict[str, Any]]:
        """The first 100 rows that did not fit: {row, column, message}."""
        return list(self.report.get("problems", []))

    @property
    def split_notes(self) -> list[str]:
        """Which rows were kept together or left out, in words."""
        return list(self.report.get("split_notes", []))

    @property
    def group_columns(self) -> list[dict[str, Any]]:
        """Columns whose values repeat, so that they may say which rows belong together: {name, values}."""
        return list(self.report.get("group_columns", []))

    @property
    def asks_for_columns(self) -> bool:
        """Whether the import failed with the question which column is what."""
        return bool(self.job and self.state == State.FAILED and self.job.error_code == "columns_unclear")

    @property
    def offers_its_good_rows(self) -> bool:
        """Whether it failed over bad rows alone, so that the good ones would do without them."""
        enough = self.report.get("rows", 0) >= len(SPLITS)
        return bool(self.problems) and enough and not self.asks_for_columns

    def forget_upload(self) -> None:
        """Delete the raw upload: the imported rows say all that it said."""
        (Path(settings.UPLOAD_DIR) / self.upload).unlink(missing_ok=True)

    def folder(self) -> Path:
        """Where its splits lie. Equal content shares a folder."""
        return Path(settings.DATA_DIR) / "datasets" / self.sha256

    def preview(self) -> list[dict[str, Any]]:
        """Rows as the model will read them, rendered by the import job: {row, text, segments, tokens}."""
        path = self.folder() / "preview.json"
        return list(json.loads(path.read_text())) if self.sha256 and path.exists() else []

    def spec(self) -> DataSpec:
        """What the engine needs to read it."""
        return DataSpec(
            path=str(self.folder()),
            sha256=self.sha256,
            name=self.dataset.name,
            version=self.version,
            test_sha256=self.test_sha256,
        )


def new_upload_path() -> Path:
    """A name under UPLOAD_DIR that nobody can guess and nothing has."""
    return Path(settings.UPLOAD_DIR) / secrets.token_hex(16)
