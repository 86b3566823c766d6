"""Frozen pretrained models: the bundled one, folders the operator put in place, and hub repositories."""

from __future__ import annotations

import functools
import json
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models, transaction
from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project, SharedQuerySet
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import State, db_now
from workers.contract.errors import OutOfMemory
from workers.contract.specs import BaseSpec, InspectSpec, ServeSpec, to_dict
from workers.target_modules.census import CENSUS_VERSION, Census

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

BUNDLED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


class BaseModelQuerySet(SharedQuerySet["BaseModel"]):
    """Base models by state of their inspection."""

    def ready(self) -> BaseModelQuerySet:
        """Filter models with a census; one that is being inspected again stays usable."""
        return self.filter(census__isnull=False).exclude(job__state__in=[State.FAILED, State.CANCELLED])

    def ensure_bundled(self) -> BaseModel:
        """Return the row of the bundled model; create it if it is missing."""
        row, _created = self.get_or_create(
            source=BaseModel.Source.BUNDLED,
            project=None,
            defaults={"name": "SmolLM2 135M Instruct", "hub_id": BUNDLED_HUB_ID, "license": "apache-2.0"},
        )
        return row

    def add(
        self,
        *,
        project: Project,
        by: User | None,
        source: BaseModel.Source,
        name: str,
        hub_id: str,
        folder: str = "",
        revision: str = "",
        idempotency_key: str = "",
    ) -> BaseModel:
        """Create a base model of the project and queue its inspection.

        `folder` is one of `model_folders()`; `hub_id` is then the public name that adapters carry.
        Raises IntegrityError if the project already has this name and revision.
        """
        with transaction.atomic():
            row = self.create(
                project=project,
                added_by=by,
                source=source,
                name=name,
                hub_id=hub_id,
                folder=folder,
                revision=revision,
            )
            row.inspect(by, idempotency_key=idempotency_key)
        return row

    def uninspected(self) -> BaseModelQuerySet:
        """Filter models without an inspect job, such as the bundled one on first start."""
        return self.filter(job=None)

    def outdated(self, since: datetime) -> BaseModelQuerySet:
        """Filter models with a census of another version, or one from before `since` with other libraries.

        `since` is the start of this process: a worker with other libraries would otherwise inspect forever.
        """
        counted = self.filter(census__isnull=False, job__state=State.SUCCEEDED)
        other = models.Q()
        for name in ("peft", "transformers"):
            other |= ~models.Q(**{f"census__versions__{name}": version(name)})
        ours = models.Q(census__version=CENSUS_VERSION)
        return counted.filter(~ours | (models.Q(job__finished_at__lt=since) & other))


class BaseModel(models.Model):
    """A frozen pretrained model that adapters are trained on."""

    class Source(models.TextChoices):
        BUNDLED = "bundled", _("Bundled")
        FOLDER = "folder", _("Folder")
        HUB = "hub", _("Hub")

    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="base_models")
    source = models.CharField(max_length=10, choices=Source.choices)
    name = models.CharField(_("name"), max_length=120)
    hub_id = models.CharField(_("public name or hub id"), max_length=200)
    revision = models.CharField(_("revision"), max_length=100, blank=True)
    folder = models.CharField(max_length=255, blank=True)  # below DATA_DIR/models
    path = models.CharField(max_length=1000, blank=True)  # folder of the files, set by the inspect job
    sha256 = models.CharField(max_length=64, blank=True)
    license = models.CharField(max_length=100, blank=True)
    parameters = models.BigIntegerField(null=True, blank=True)
    census = models.JSONField(null=True, blank=True)
    job = models.ForeignKey(Job, models.SET_NULL, null=True, blank=True, related_name="base_models")
    # The newest job that answers prompts with it.
    serving_job = models.ForeignKey(
        Job, models.SET_NULL, null=True, blank=True, related_name="served_base_models"
    )
    added_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    # The census, and its text.
    _written_census: tuple[Any, str] = (None, "")

    objects = BaseModelQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["source"], condition=models.Q(source="bundled"), name="base_model_bundled_once"
            ),
            models.UniqueConstraint(
                fields=["project", "hub_id", "revision"], name="base_model_once_per_project"
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("base-model-detail", args=[self.pk])

    def inspect(self, by: User | None = None, *, idempotency_key: str = "") -> Job:
        """Queue an inspect job, which counts the model's modules; return the open one if there is one."""
        if self.source == self.Source.HUB:
            spec = InspectSpec(
                hub_id=self.hub_id, revision=self.revision, cache=str(settings.DATA_DIR / "hub")
            )
        else:
            spec = InspectSpec(path=str(self.local_folder()))
        return self._submit_inspection(spec, by, idempotency_key)

    def recount(self) -> Job:
        """Queue an inspection of the files on disk, without another download."""
        cache = str(settings.DATA_DIR / "hub") if self.source == self.Source.HUB else ""
        spec = InspectSpec(path=self.path, revision=self.revision, cache=cache)
        return self._submit_inspection(spec, None, "")

    def _submit_inspection(self, spec: InspectSpec, by: User | None, idempotency_key: str) -> Job:
        with transaction.atomic():
            # Two requests may come at once: the second gets the first one's job.
            open_job = BaseModel.objects.select_for_update().get(pk=self.pk).job
            if open_job is not None and not open_job.is_over:
                self.job = open_job
                return open_job
            self.job = Job.objects.submit(
                Job.Kind.INSPECT, to_dict(spec), project=self.project, by=by, idempotency_key=idempotency_key
            )
            self.save()
        return self.job

    def serve(self, by: User | None = None) -> Job:
        """Return the job that answers prompts with it; queue one if none is open."""
        with transaction.atomic():
            # Two requests may come at once: the second gets the first one's job.
            job = BaseModel.objects.select_for_update().get(pk=self.pk).serving_job
            if job is None or job.is_over or job.is_stop_requested:
                spec = to_dict(self.serve_spec())
                job = Job.objects.submit(Job.Kind.SERVE, spec, project=self.project, by=by)
                BaseModel.objects.filter(pk=self.pk).update(serving_job=job)
            self.serving_job = job
        return job

    def job_without_memory(self, seconds: float) -> Job | None:
        """Return the newest job that answers prompts with it if it ended for lack of memory just now."""
        recent = Job.objects.filter(
            state=State.FAILED,
            error_code=OutOfMemory.code,
            finished_at__gt=db_now(timedelta(seconds=-seconds)),
        )
        return recent.filter(served_base_models=self.pk).first()

    def serve_spec(self) -> ServeSpec:
        """Return the spec of its inference job, with the limits of this installation."""
        return ServeSpec(
            base=self.spec(),
            socket=str(self.socket()),
            adapters=str(Path(settings.DATA_DIR) / "adapters"),
            max_rows=settings.INFERENCE_ROWS,
            max_tokens=settings.INFERENCE_TOKENS,
            max_adapters=settings.INFERENCE_ADAPTERS,
            idle_seconds=60.0 * settings.INFERENCE_IDLE_MINUTES,
        )

    def socket(self) -> Path:
        """Return where its inference job listens for chats."""
        return Path(settings.DATA_DIR) / "run" / "chat" / f"base-{self.pk}.sock"

    def local_folder(self) -> Path:
        """Return the folder of a bundled model or of one under DATA_DIR/models."""
        if self.source == self.Source.BUNDLED:
            return Path(settings.BUNDLED_MODEL_DIR)
        return Path(settings.DATA_DIR) / "models" / self.folder

    def record_inspection(self, values: dict[str, Any]) -> None:
        """Store the result of the inspect job."""
        self.census = values["census"]
        self.path = values["path"]
        self.sha256 = values["sha256"]
        self.parameters = values["parameters"]
        self.license = (values.get("license") or self.license)[:100]
        if self.source == self.Source.HUB:
            self.revision = values.get("revision") or self.revision
        self.save(update_fields=["census", "path", "sha256", "parameters", "license", "revision"])

    @property
    def state(self) -> str:
        """Return the state of its inspect job."""
        return self.job.state if self.job else State.QUEUED

    @property
    def is_ready(self) -> bool:
        """Return whether runs can start on it: it has a census, and its last inspection did not fail."""
        return self.census is not None and self.state not in (State.FAILED, State.CANCELLED)

    @property
    def has_operator_server(self) -> bool:
        """Return whether a server of the operator answers its chats, instead of an inference job."""
        server = settings.INFERENCE_SERVER
        return bool(server.url) and self.hub_id == server.model

    @property
    def model_type(self) -> str:
        """Return Transformers' name of its architecture; "" before the first inspection."""
        return str((self.census or {}).get("model_type", ""))

    def load_census(self) -> Census:
        """Return the census. Raises ValueError before the first inspection, TargetError if it is outdated."""
        return parse_census(self.census_text())

    def census_text(self) -> str:
        """Return the census as JSON. Raises ValueError before the first inspection."""
        if self.census is None:
            raise ValueError("Inspect the base model first.")
        # Written once: a form asks for it with every choice of layers.
        if self._written_census[0] is not self.census:
            self._written_census = (self.census, json.dumps(self.census))
        return self._written_census[1]

    def spec(self) -> BaseSpec:
        """Return the spec by which the engine loads it. The bundled model has a hash but no hub revision."""
        return BaseSpec(
            path=self.path,
            name=self.hub_id,
            revision=self.revision or None,
            sha256=self.sha256,
            license=self.license,
        )


# By content, because a form asks for the same census dozens of times.
@functools.lru_cache(maxsize=32)
def parse_census(text: str) -> Census:
    """Return the census in a JSON text. Raises TargetError for one of another version."""
    return Census.from_dict(json.loads(text))


def model_folders() -> list[str]:
    """Return the model folders under DATA_DIR/models, and subfolders with a config.json, as relative paths.

    Links that lead outside are left out: pages offer these names, and no other path is ever opened.
    """
    root = (Path(settings.DATA_DIR) / "models").resolve()
    folders = [path for path in root.glob("*/") if not path.name.startswith(".")]
    nested = [config.parent for path in folders for config in path.glob("*/config.json")]
    parents = {path.parent for path in nested}
    offered = [path for path in folders if path not in parents or (path / "config.json").exists()] + nested
    return sorted(
        path.relative_to(root).as_posix()
        for path in offered
        if path.is_dir() and path.resolve().is_relative_to(root) and path.resolve() != root
    )
