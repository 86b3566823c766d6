"""Saved views: a name, and the choices in the address of a list or of the Compare page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from django.db import models
from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project, ProjectQuerySet

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User


class SavedViewQuerySet(ProjectQuerySet["SavedView"]):
    """Queries of saved views."""

    def keep(self, project: Project, by: User, page: str, name: str, query: str) -> SavedView | None:
        """Save a view of a page; None if the project has one of this name, which stays as it is."""
        view, created = self.get_or_create(
            project=project, page=page, name=name, defaults={"query": query, "created_by": by}
        )
        return view if created else None


class SavedView(models.Model):
    """A view that every member of the project can open; it shows the runs as they are then."""

    class Page(models.TextChoices):
        """The pages with saved views, by the names of their routes."""

        COMPARE = "compare", _("Compare")
        RUNS = "training-run-index", _("Runs")
        ADAPTERS = "adapter-index", _("Adapters")

    project = models.ForeignKey(Project, models.CASCADE, related_name="saved_views")
    page = models.CharField(max_length=20, choices=Page.choices, default=Page.COMPARE)
    name = models.CharField(_("name"), max_length=80)
    # The query of the page's address, without the question mark.
    query = models.CharField(max_length=2000)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = SavedViewQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["project", "page", "name"], name="saved_view_once_per_project"),
            models.CheckConstraint(
                condition=models.Q(page__in=["compare", "training-run-index", "adapter-index"]),
                name="saved_view_page_known",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return f"{reverse(self.page)}?{self.query}"
