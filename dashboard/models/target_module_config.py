"""Named choices of where an adapter sits. The built-in presets mirror `workers.presets`."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from dashboard.models.base_model import BaseModel
from dashboard.models.project import Project, SharedQuerySet
from workers.presets import PRESETS, RECOMMENDED, resolve
from workers.targets import Resolution


class TargetModuleConfigQuerySet(SharedQuerySet["TargetModuleConfig"]):
    """Configs in the order of the form: presets first."""

    def ensure_presets(self) -> None:
        """Write the built-in presets, so that rows can point at them; labels follow the code."""
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


class TargetModuleConfig(models.Model):
    """A set of roles that an adapter is attached to; resolved per base model from its census."""

    project = models.ForeignKey(
        Project, models.CASCADE, null=True, blank=True, related_name="target_module_configs"
    )
    slug = models.SlugField(max_length=60, null=True, blank=True)  # noqa: DJ001 - null for a custom one, as the API says
    name = models.CharField(_("name"), max_length=120)
    description = models.TextField(_("description"), blank=True)
    roles = models.JSONField(default=list)
    position = models.PositiveSmallIntegerField(default=100)

    objects = TargetModuleConfigQuerySet.as_manager()

    class Meta:
        ordering = ["position", "pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["slug"], condition=models.Q(project=None), name="target_module_config_preset_once"
            )
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_recommended(self) -> bool:
        """Whether the form preselects it."""
        return self.slug == RECOMMENDED

    def resolve(self, base_model: BaseModel) -> Resolution:
        """What it means on this base model, from the census alone."""
        return resolve(self.roles, base_model.counted())
