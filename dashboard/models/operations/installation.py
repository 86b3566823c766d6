"""Links a database to its data folder: one row, and a file in the folder with the same key.

A new or wrong database has no rows for the folder's files and would delete them all as unknown. Code that
deletes files checks this link first.
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
    """Checks and creates the link."""

    def is_at_home(self) -> bool:
        """Return whether the data folder has this database's key or none."""
        key = _key_in_folder()
        return key is None or self.filter(key=key).exists()

    def claim(self) -> bool:
        """Write the key into a folder without one. Return whether the folder belongs to this database."""
        if _key_in_folder() is None:
            installation, _created = self.get_or_create(only=True, defaults={"key": secrets.token_hex(16)})
            _mark_folder(installation.key)
        return self.is_at_home()


class Installation(models.Model):
    """The key of this database and its data folder."""

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
    """Write the key atomically: half a key would look like another installation's."""
    temporary = _path().with_name(f".{NAME}-{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(f"{key}\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(_path())
