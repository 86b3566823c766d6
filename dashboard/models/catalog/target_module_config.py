"""Target-module configs: the built-in presets of `workers.target_modules.presets`, and the projects' own.

A project's own config is never changed: a new version of its name is a new row, and runs keep theirs.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import models
from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project, SharedQuerySet
from dashboard.models.catalog.base_model import BaseModel, parse_census
from workers.target_modules.custom import Selection
from workers.target_modules.presets import PRESETS, RECOMMENDED, resolve
from workers.target_modules.resolution import Resolution

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

TEXT_LENGTH = 4000


class TargetModuleConfigQuerySet(SharedQuerySet["TargetModuleConfig"]):
    """Configs in the order of the form: presets first."""

    def ensure_presets(self) -> None:
        """Write the built-in presets, so that rows can refer to them; labels follow the code."""
        for position, preset in enumerate(PRESETS.values()):
            self.update_or_create(
                slug=preset.slug,
                project=None,
                defaults={
                    "name": preset.label,
                    "description": preset.sentence,
                    "roles": list(preset.roles),
                    "position": position,
                },
            )

    def current(self) -> TargetModuleConfigQuerySet:
        """Exclude those that a newer version has replaced."""
        newer = TargetModuleConfig.objects.filter(
            project=models.OuterRef("project"),
            name=models.OuterRef("name"),
            version__gt=models.OuterRef("version"),
        )
        return self.exclude(models.Exists(newer.filter(project__isnull=False)))

    def compose(
        self,
        *,
        project: Project,
        by: User | None,
        name: str,
        selection: Selection,
        description: str = "",
        evidence: str = "",
    ) -> TargetModuleConfig:
        """Create a config of the project; an existing name gets its next version.

        Raises IntegrityError if another request takes the version at the same time.
        """
        newest = self.filter(project=project, name=name).aggregate(version=models.Max("version"))["version"]
        return self.create(
            project=project,
            made_by=by,
            name=name,
            selection=selection.to_dict(),
            description=description,
            evidence=evidence,
            version=(newest or 0) + 1,
        )


class TargetModuleConfig(models.Model):
    """The modules that an adapter is attached to, by role or by name; resolved per base model."""

    project = models.ForeignKey(
        Project, models.CASCADE, null=True, blank=True, related_name="target_module_configs"
    )
    slug = models.SlugField(max_length=60, null=True, blank=True)  # noqa: DJ001 - null for a custom one, as the API says
    name = models.CharField(_("name"), max_length=120)
    description = models.TextField(_("description"), blank=True)
    roles = models.JSONField(default=list)
    selection = models.JSONField(null=True, blank=True)  # names instead of roles
    evidence = models.TextField(_("evidence"), blank=True)
    version = models.PositiveIntegerField(default=1)
    made_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    position = models.PositiveSmallIntegerField(default=100)

    objects = TargetModuleConfigQuerySet.as_manager()

    class Meta:
        ordering = ["position", "pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["slug"], condition=models.Q(project=None), name="target_module_config_preset_once"
            ),
            models.UniqueConstraint(
                fields=["project", "name", "version"], name="target_module_config_version_once"
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("target-module-config-detail", args=[self.pk])

    @property
    def is_recommended(self) -> bool:
        """Return whether the form preselects it."""
        return self.slug == RECOMMENDED

    @property
    def title(self) -> str:
        """Return the name, with the version for a project's own config."""
        return self.name if self.project_id is None else f"{self.name} v{self.version}"

    @staticmethod
    def is_reserved(name: str) -> bool:
        """Return True if a preset has this name."""
        words = {word.casefold() for preset in PRESETS.values() for word in (preset.slug, preset.label)}
        return name.strip().casefold() in words

    def resolve(self, base_model: BaseModel) -> Resolution:
        """Return the layers that it matches on this base model, from the census alone."""
        choice = self.roles if self.selection is None else self.selection
        return _resolve(json.dumps(choice), base_model.census_text())


# By content, because a form resolves the same choices several times at every change.
@functools.lru_cache(maxsize=256)
def _resolve(choice: str, census: str) -> Resolution:
    """Resolve roles or a selection on a census, both as JSON."""
    chosen = json.loads(choice)
    if isinstance(chosen, dict):
        return Selection.from_dict(chosen).resolve(parse_census(census))
    return resolve(chosen, parse_census(census))
