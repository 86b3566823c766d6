"""Tags: short words of a project, by which its runs are found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from django.db import models
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project, ProjectQuerySet

if TYPE_CHECKING:
    from dashboard.models.training.training_run import TrainingRun

TAG_LETTERS = 40


class TagQuerySet(ProjectQuerySet["Tag"]):
    """Queries of tags."""

    def named(self, project: Project, names: Iterable[str]) -> list[Tag]:
        """Return the project's tags of these names; create those that are missing."""
        return [self.get_or_create(project=project, name=name)[0] for name in names]

    def set_all(self, run: TrainingRun, names: Iterable[str]) -> None:
        """Give a run exactly these tags."""
        run.tags.set(self.named(run.project, names))
        self.drop_unused(run.project)

    def attach(self, runs: Iterable[TrainingRun], tag: Tag) -> None:
        """Attach a tag to runs; runs that have it keep it."""
        link = self.model.training_runs.through  # type: ignore[attr-defined]
        links = [link(tag=tag, trainingrun=run) for run in runs]
        link.objects.bulk_create(links, ignore_conflicts=True)

    def detach(self, runs: Iterable[TrainingRun], tag: Tag) -> None:
        """Remove a tag from runs, and delete it if no run is left."""
        tag.training_runs.remove(*runs)  # type: ignore[attr-defined]
        self.drop_unused(tag.project)

    def drop_unused(self, project: Project) -> None:
        """Delete the project's tags that no run has."""
        self.filter(project=project, training_runs=None).delete()


class Tag(models.Model):
    """A word that members attach to runs; an adapter has those of its run."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="tags")
    name = models.CharField(_("tag"), max_length=TAG_LETTERS)

    objects = TagQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["project", "name"], name="tag_once_per_project")]

    def __str__(self) -> str:
        return self.name
