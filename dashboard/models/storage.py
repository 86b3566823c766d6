"""What takes the space: sizes by kind and project, measured by the dispatcher, and what people ask to clear.

No page walks the disk: it reads the rows that the last round left.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from dashboard.models.adapter import Adapter
from dashboard.models.data_folder import entries, erase, job_number, size
from dashboard.models.installation import Installation
from dashboard.models.job import Job
from dashboard.models.job_state import TERMINAL
from dashboard.models.project import Project
from dashboard.models.retention import forget_checkpoint

if TYPE_CHECKING:
    from dashboard.models.user import User

logger = logging.getLogger(__name__)


class StorageUse(models.Model):
    """How much one kind of thing takes, of one project or (without one) of the whole installation."""

    class Kind(models.TextChoices):
        UPLOADS = "uploads", _("Uploads")
        DATASETS = "datasets", _("Datasets")
        ADAPTERS = "adapters", _("Adapters")
        CHECKPOINTS = "checkpoints", _("Checkpoints")
        WORK = "work", _("Work in progress")
        LOGS = "logs", _("Logs")
        ARCHIVES = "archives", _("Prepared downloads")
        MODELS = "models", _("Base models")
        DATABASE = "database", _("Database")
        OTHER = "other", _("Other files")

    kind = models.CharField(max_length=12, choices=Kind.choices)
    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="storage_uses")
    bytes = models.BigIntegerField(default=0)
    count = models.PositiveIntegerField(default=0)
    removable_bytes = models.BigIntegerField(default=0)  # what a clean-up would free
    removable_count = models.PositiveIntegerField(default=0)
    unknown_count = models.PositiveIntegerField(default=0)  # what no row of this database names
    biggest = models.JSONField(default=list)  # [title, address, bytes], the biggest first
    measured_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-bytes", "kind"]
        constraints = [
            models.UniqueConstraint(fields=["kind", "project"], name="storage_use_once_per_project"),
            models.UniqueConstraint(
                fields=["kind"], condition=models.Q(project=None), name="storage_use_once_for_all"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} of {self.project or 'everybody'}"


class CleanUpQuerySet(models.QuerySet["CleanUp"]):
    """Clean-ups that somebody has asked for."""

    def open(self) -> CleanUpQuerySet:
        """Not done yet, the oldest first."""
        return self.filter(done_at=None).order_by("pk")

    def due(self) -> CleanUpQuerySet:
        """Those to carry out now: none while the data folder belongs to another database."""
        return self.open() if Installation.objects.claim() else self.none()

    def ask(self, project: Project | None, by: User | None) -> CleanUp:
        """Have the dispatcher clear what is safe to clear; one that waits is kept."""
        return self.open().filter(project=project).first() or self.create(project=project, asked_by=by)


class CleanUp(models.Model):
    """Somebody's wish to clear what is safe to clear, of one project or of the whole installation."""

    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="clean_ups")
    asked_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    asked_at = models.DateTimeField(db_default=Now())
    done_at = models.DateTimeField(null=True, blank=True)
    freed_bytes = models.BigIntegerField(default=0)

    objects = CleanUpQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"clean-up of {self.project or 'everything'}"

    def carry_out(self) -> Iterator[None]:
        """Delete checkpoints of jobs that had ended when it was asked, and prepared downloads; in steps."""
        if not Installation.objects.claim():
            logger.warning("the data folder belongs to another database, so %s waits", self)
            return
        ended = Job.objects.filter(state__in=TERMINAL, finished_at__lte=self.asked_at)
        archives = Adapter.objects.all()
        if self.project_id:
            ended, archives = ended.filter(project=self.project_id), archives.filter(project=self.project_id)
        freed = 0
        for path in entries("checkpoints", "job-"):
            if ended.filter(pk=job_number(path)).exists():
                try:
                    freed += forget_checkpoint(path, also=ended)
                except OSError as error:
                    # One that cannot be moved, or is gone meanwhile, must not keep the rest from going.
                    logger.warning("clearing %s: %s", path.name, error)
            yield
        for path in entries("archives"):
            number, _dash, _hash = path.name.partition("-")
            if number.isdecimal() and archives.filter(pk=number).exists():
                freed += size(path)
                erase(path)
            yield
        CleanUp.objects.filter(pk=self.pk).update(done_at=Now(), freed_bytes=freed)
