"""The Django app; creates the built-in rows after every migration."""

from __future__ import annotations

from django.apps import AppConfig
from django.db.models.signals import post_migrate


def ensure_builtin_rows(**_kwargs: object) -> None:
    """Create presets and the bundled model."""
    from dashboard.models import BaseModel, TargetModuleConfig

    TargetModuleConfig.objects.ensure_presets()
    BaseModel.objects.ensure_bundled()


class DashboardConfig(AppConfig):
    """Graftworks' one Django app."""

    name = "dashboard"
    verbose_name = "Graftworks"

    def ready(self) -> None:
        post_migrate.connect(ensure_builtin_rows, sender=self)
