"""A record of each published folder, written before the rename, so that it survives a crash.

Only recorded folders may be deleted from adapters, datasets and exports. A folder without a record may
belong to another database, or to this one before it was restored from a copy.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from dashboard.models.adapters.adapter import Adapter
from dashboard.models.adapters.export import Export
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.jobs.job_state import db_now

# Within this time the next attempt of a crashed job reuses the folder.
ADOPTED_WITHIN = timedelta(hours=24)


class PublicationQuerySet(models.QuerySet["Publication"]):
    """Publications by their age."""

    def begin(self, kind: Publication.Kind, folder: str) -> None:
        """Record `folder`. Call it before the rename, committed by itself."""
        self.update_or_create(kind=kind, folder=folder, defaults={"begun_at": Now()})

    def orphaned(self) -> PublicationQuerySet:
        """Return old publications whose folder no adapter, dataset version or export uses."""
        adapters = Adapter.objects.filter(folder=models.OuterRef("folder"))
        versions = DatasetVersion.objects.filter(sha256=models.OuterRef("folder"))
        exports = Export.objects.filter(folder=models.OuterRef("folder"))
        is_named = (
            models.Q(models.Exists(adapters), kind=Publication.Kind.ADAPTER)
            | models.Q(models.Exists(versions), kind=Publication.Kind.DATASET)
            | models.Q(models.Exists(exports), kind=Publication.Kind.EXPORT)
        )
        return self.filter(begun_at__lt=db_now(-ADOPTED_WITHIN)).exclude(is_named)


class Publication(models.Model):
    """A folder below DATA_DIR that was, or was about to be, published."""

    class Kind(models.TextChoices):
        ADAPTER = "adapters", _("Adapter")
        DATASET = "datasets", _("Dataset version")
        EXPORT = "exports", _("Export")

    kind = models.CharField(max_length=10, choices=Kind.choices)
    folder = models.CharField(max_length=64)
    begun_at = models.DateTimeField(db_default=Now())

    objects = PublicationQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["kind", "folder"], name="publication_once")]
        indexes = [models.Index(fields=["begun_at"])]

    def __str__(self) -> str:
        return f"{self.kind}/{self.folder}"

    def path(self) -> Path:
        """Return the path of the folder, which may not exist."""
        return Path(settings.DATA_DIR) / self.kind / self.folder
