"""The app: makes sure that the built-in rows exist after every migration."""

from __future__ import annotations

from django.apps import AppConfig
from django.db.models.signals import post_migrate


def ensure_builtin_rows(**_kwargs: object) -> None:
    """Presets and the bundled model are rows like any other, and there from the first page on."""
    from dashboard.models import BaseModel, TargetModuleConfig

    TargetModuleConfig.objects.ensure_presets()
    BaseModel.objects.ensure_bundled()


class DashboardConfig(AppConfig):
    """Graftworks' one Django app."""

    name = "dashboard"
    verbose_name = "Graftworks"

    def ready(self) -> None:
        """Built-in rows follow the code, also after a test has emptied the tables."""
        post_migrate.connect(ensure_builtin_rows, sender=self)
