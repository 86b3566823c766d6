"""Which data folder belongs to this database: one row and a file in the folder with the same key.

A database that was set up anew, or named by mistake, knows none of the folder's files. Deleting what it does
not know would delete everything, so whoever deletes asks here first.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from django.conf import settings
from django.db import models
from django.db.models.functions import Now

NAME = "installation-id"


class InstallationManager(models.Manager["Installation"]):
    """The one row."""

    def is_at_home(self) -> bool:
        """Whether the data folder carries this database's key, or nobody's. Changes nothing."""
        found = _key_in_folder()
        return found is None or self.filter(key=found).exists()

    def claim(self) -> bool:
        """Mark a data folder that nobody has marked; whether the folder belongs to this database now."""
        if _key_in_folder() is None:
            own, _created = self.get_or_create(only=True, defaults={"key": secrets.token_hex(16)})
            _mark_folder(own.key)
        return self.is_at_home()


class Installation(models.Model):
    """This database, as its data folder knows it."""

    only = models.BooleanField(default=True, unique=True)
    key = models.CharField(max_length=32)
    created_at = models.DateTimeField(db_default=Now())

    objects = InstallationManager()

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(only=True), name="installation_only_one")]

    def __str__(self) -> str:
        return self.key


def _path() -> Path:
    return Path(settings.DATA_DIR) / NAME


def _key_in_folder() -> str | None:
    try:
        return _path().read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None


def _mark_folder(key: str) -> None:
    """Written aside first: half a key would look like another installation's."""
    aside = _path().with_name(f".{NAME}-{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(f"{key}\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(_path())
