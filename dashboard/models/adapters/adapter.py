"""Adapters: the artifact of a run. Only committed rows can be downloaded."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.urls import reverse
from django.utils.text import slugify
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project, ProjectQuerySet
from dashboard.models.adapters.unloading import unload_on_commit
from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.training.training_run import TrainingRun
from workers.contract.archives import checksums, store
from workers.contract.half_precision import halve
from workers.contract.loading_code import loading_code
from workers.serving import gguf_adapter

WEIGHTS = "adapter_model.safetensors"
# Suffix in the file name of a download with rounded weights.
HALF = "-bfloat16"
FILES_MISSING = _("The files of this adapter are no longer on this machine. Restore them from a backup.")


class AdapterQuerySet(ProjectQuerySet["Adapter"]):
    """Adapters with what lists and pages show."""

    def with_facts(self) -> AdapterQuerySet:
        """Join everything that a row of a list names."""
        return self.select_related(
            "base_model", "run__dataset_version__dataset", "run__target_module_config", "run__job", "project"
        )

    def publish(self, run: TrainingRun, folder: str, files: dict[str, str], size: int) -> Adapter:
        """Create the adapter of a published folder, under the run's name and the next version."""
        with transaction.atomic():
            # The UPDATE locks the project, so that two runs of one name get different versions.
            Project.objects.filter(pk=run.project_id).update(name=models.F("name"))
            last = (
                self.filter(project=run.project, name=run.name).aggregate(last=models.Max("version"))["last"]
                or 0
            )
            return self.create(
                project=run.project,
                run=run,
                name=run.name,
                version=last + 1,
                base_model=run.base_model,
                folder=folder,
                files=files,
                sha256=files[WEIGHTS],
                size_bytes=size,
            )


class Adapter(models.Model):
    """A finished adapter: a folder that PEFT loads, named by the hash of its content."""

    class Stage(models.TextChoices):
        DRAFT = "draft", _("Draft")
        APPROVED = "approved", _("Approved")
        RETIRED = "retired", _("Retired")

    project = models.ForeignKey(Project, models.CASCADE, related_name="adapters")
    run = models.OneToOneField(TrainingRun, models.PROTECT, related_name="adapter")
    name = models.CharField(_("name"), max_length=120)
    version = models.PositiveIntegerField()
    stage = models.CharField(max_length=10, choices=Stage.choices, default=Stage.DRAFT)
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="adapters")
    folder = models.CharField(max_length=64)  # below DATA_DIR/adapters
    files = models.JSONField()  # name -> SHA-256
    sha256 = models.CharField(max_length=64)  # of adapter_model.safetensors
    size_bytes = models.BigIntegerField()  # of adapter_model.safetensors
    created_at = models.DateTimeField(auto_now_add=True)

    objects = AdapterQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        indexes = [models.Index(fields=["size_bytes"])]
        constraints = [
            models.UniqueConstraint(fields=["project", "name", "version"], name="adapter_version_once"),
            models.CheckConstraint(
                condition=models.Q(stage__in=["draft", "approved", "retired"]), name="adapter_stage_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name}:v{self.version}"

    def get_absolute_url(self) -> str:
        return reverse("adapter-detail", args=[self.pk])

    def set_stage(self, stage: str) -> None:
        self.stage = self.Stage(stage)
        self.save(update_fields=["stage"])
        if stage == self.Stage.RETIRED:
            unload_on_commit([self])

    def path(self) -> Path:
        """Return the folder that PEFT loads."""
        return Path(settings.DATA_DIR) / "adapters" / self.folder

    @property
    def openai_name(self) -> str:
        """Return its name for OpenAI's clients: ft:BASE:PROJECT:NAME:ID."""
        return f"ft:{self.base_model.hub_id}:{self.project.slug}:{slugify(self.name)}:{self.pk}"

    def usage(self) -> str:
        """Return a Python snippet that loads the unpacked download."""
        folder = self.archive_name().removesuffix(".zip")
        base, in_4bit = self.base_model, self.run.in_4bit
        return loading_code(base.hub_id, base.revision, folder, in_4bit=in_4bit)

    def archive_name(self, *, half: bool = False) -> str:
        """Return the file name of the download."""
        stem = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in self.name).strip(
            "-."
        )
        return f"{stem or 'adapter'}-v{self.version}{HALF if half else ''}.zip"

    @property
    def can_be_halved(self) -> bool:
        """Return whether its weights are fp32, so that bfloat16 halves them."""
        return bool(self.run.hyperparameters.get("autocast_adapter_dtype", True))

    def config(self) -> dict[str, Any]:
        """Return PEFT's adapter_config.json."""
        return dict(json.loads((self.path() / "adapter_config.json").read_text()))

    def evaluation_report(self) -> list[dict[str, Any]]:
        """Return the finished evaluations of base model and adapter, as eval.json holds them."""
        ended = self.run.evaluations.ended().exclude(base_evaluation=None).order_by("pk").last()
        return [one.facts() for one in (ended.base_evaluation, ended) if one and one.metrics] if ended else []

    def archive(self, *, half: bool = False) -> Path:
        """Return the zip of the published folder, eval.json and SHA256SUMS; it is written once per content.

        `half` rounds the weights to bfloat16; everything else stays the same, the scores included.
        Members are stored, not compressed, in sorted order and with a fixed time: equal content, equal bytes.
        """
        report = json.dumps(self.evaluation_report(), indent=2, sort_keys=True).encode() + b"\n"
        sums = {**self.files, "eval.json": hashlib.sha256(report).hexdigest()}
        content = hashlib.sha256(checksums(sums)).hexdigest()[:32]
        target = Path(settings.DATA_DIR) / "archives" / f"{self.pk}{HALF if half else ''}-{content}.zip"
        if not target.exists():
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Two requests may write the same content at once: each in its own folder, the last rename wins.
            with tempfile.TemporaryDirectory(dir=target.parent) as aside:
                extra: dict[str, bytes | Path] = {"eval.json": report}
                if half:
                    extra[WEIGHTS] = Path(aside) / WEIGHTS
                    halve(self.path() / WEIGHTS, Path(aside) / WEIGHTS)
                    sums[WEIGHTS] = _sha256(Path(aside) / WEIGHTS)
                self._write_archive(Path(aside) / target.name, extra | {"SHA256SUMS": checksums(sums)})
                (Path(aside) / target.name).replace(target)
            for older in target.parent.glob(f"{target.stem.removesuffix(content)}{'[0-9a-f]' * 32}.zip"):
                if older != target:
                    older.unlink(missing_ok=True)
        # Access time: unused archives are deleted. Modification time stays: the ETag depends on it.
        os.utime(target, ns=(time.time_ns(), target.stat().st_mtime_ns))
        return target

    def gguf_name(self) -> str:
        """Return the file name of the GGUF download."""
        return self.archive_name().removesuffix(".zip") + ".gguf"

    @functools.cached_property
    def gguf_refusal(self) -> str:
        """The reason why there is no GGUF file of this adapter, as a sentence; "" if there is one."""
        try:
            return gguf_adapter.refusal(self.path() / WEIGHTS, self.base_model.model_type)
        except (OSError, ValueError):
            return str(FILES_MISSING)

    def gguf(self) -> Path:
        """Return the adapter as a GGUF file, which is written once.

        Raises ModelError if it has no such form, FileNotFoundError if its files are missing or broken.
        """
        target = Path(settings.DATA_DIR) / "archives" / f"{self.pk}-{self.sha256[:32]}.gguf"
        if not target.exists():
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            config = json.loads((Path(self.base_model.path) / "config.json").read_text(encoding="utf-8"))
            with tempfile.TemporaryDirectory(dir=target.parent) as aside:
                try:
                    gguf_adapter.write_gguf_adapter(self.path(), config, Path(aside) / target.name)
                except ValueError as broken:
                    raise FileNotFoundError(WEIGHTS) from broken
                (Path(aside) / target.name).replace(target)
        os.utime(target, ns=(time.time_ns(), target.stat().st_mtime_ns))
        return target

    def _write_archive(self, target: Path, extra: dict[str, bytes | Path]) -> None:
        stem = self.archive_name().removesuffix(".zip")
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted({*self.files, *extra}):
                store(archive, f"{stem}/{name}", extra.get(name, self.path() / name))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
