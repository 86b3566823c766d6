"""Disk use by kind and project, as measured by the dispatcher, and clean-ups that users request.

No request walks the disk: pages read the rows of the last measurement.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project
from dashboard.models.adapters.adapter import Adapter
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import TERMINAL
from dashboard.models.operations.data_folder import entries, erase, job_number, size
from dashboard.models.operations.installation import Installation
from dashboard.models.operations.retention import delete_checkpoints

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

logger = logging.getLogger(__name__)


class StorageUse(models.Model):
    """Disk use of one kind of data, of one project or (without one) of the whole installation."""

    class Kind(models.TextChoices):
        UPLOADS = "uploads", _("Uploads")
        DATASETS = "datasets", _("Datasets")
        ADAPTERS = "adapters", _("Adapters")
        EXPORTS = "exports", _("Exports")
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
    removable_bytes = models.BigIntegerField(default=0)  # freed by a clean-up
    removable_count = models.PositiveIntegerField(default=0)
    biggest = models.JSONField(default=list)  # [title, address, bytes], the largest first
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
        return f"{self.get_kind_display()} of {self.project or 'all projects'}"


class CleanUpQuerySet(models.QuerySet["CleanUp"]):
    """Clean-ups."""

    def open(self) -> CleanUpQuerySet:
        """Filter those not done yet, the oldest first."""
        return self.filter(done_at=None).order_by("pk")

    def due(self) -> CleanUpQuerySet:
        """Filter those to run now; none while the data folder belongs to another database."""
        return self.open() if Installation.objects.claim() else self.none()

    def request(self, project: Project | None, by: User | None) -> CleanUp:
        """Queue a clean-up for the dispatcher, or return the one that is already waiting."""
        return self.open().filter(project=project).first() or self.create(project=project, requested_by=by)


class CleanUp(models.Model):
    """A requested clean-up of one project or of the whole installation."""

    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="clean_ups")
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    requested_at = models.DateTimeField(db_default=Now())
    done_at = models.DateTimeField(null=True, blank=True)
    freed_bytes = models.BigIntegerField(default=0)

    objects = CleanUpQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"clean-up of {self.project or 'everything'}"

    def run(self) -> Iterator[None]:
        """Delete prepared downloads, and checkpoints of jobs that had ended at the request, in steps."""
        if not Installation.objects.claim():
            logger.warning("%s waits: the data folder belongs to another database", self)
            return
        ended = Job.objects.filter(state__in=TERMINAL, finished_at__lte=self.requested_at)
        archives = Adapter.objects.all()
        if self.project_id:
            ended, archives = ended.filter(project=self.project_id), archives.filter(project=self.project_id)
        freed = 0
        for path in entries("checkpoints", "job-"):
            if ended.filter(pk=job_number(path)).exists():
                try:
                    freed += delete_checkpoints(path, also=ended)
                except OSError as error:
                    # One entry that cannot be renamed must not stop the others.
                    logger.warning("clearing %s: %s", path.name, error)
            yield
        for path in entries("archives"):
            number, _dash, _hash = path.name.partition("-")
            if number.isdecimal() and archives.filter(pk=number).exists():
                freed += size(path)
                erase(path)
            yield
        CleanUp.objects.filter(pk=self.pk).update(done_at=Now(), freed_bytes=freed)
