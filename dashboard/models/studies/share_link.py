"""Read-only links to a study's report, for readers without an account."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import models
from django.utils import timezone

from dashboard.models.accounts.access import is_link_secret, new_link_secret
from dashboard.models.accounts.project import Project, ProjectQuerySet, digest_of
from dashboard.models.studies.study import Study

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

SHARE_DAYS = (7, 30, 90)


class ShareLinkQuerySet(ProjectQuerySet["ShareLink"]):
    """Queries of links."""

    def working(self) -> ShareLinkQuerySet:
        """Return links that are neither revoked nor expired."""
        return self.filter(revoked_at=None, expires_at__gt=timezone.now())

    def with_secret(self, secret: str) -> ShareLink | None:
        """Return the working link with this secret, and count that it was opened."""
        if not is_link_secret(secret):
            return None
        link = self.working().select_related("study").filter(digest=digest_of(secret)).first()
        if link:
            self.filter(pk=link.pk).update(opens=models.F("opens") + 1)
        return link


class ShareLink(models.Model):
    """A link to one study's report until it expires or is revoked; only its digest is stored."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="share_links")
    study = models.ForeignKey(Study, models.CASCADE, related_name="share_links")
    digest = models.CharField(max_length=64, unique=True)
    with_rows = models.BooleanField(default=False)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)
    opens = models.PositiveIntegerField(default=0)

    objects = ShareLinkQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"link to {self.study}"

    @classmethod
    def issue(cls, study: Study, by: User, *, days: int, with_rows: bool = False) -> tuple[ShareLink, str]:
        """Create a link; return it with its secret, which is shown once."""
        secret = new_link_secret()
        link = cls.objects.create(
            project=study.project,
            study=study,
            digest=digest_of(secret),
            with_rows=with_rows,
            created_by=by,
            expires_at=timezone.now() + timedelta(days=days),
        )
        return link, secret

    def revoke(self) -> None:
        ShareLink.objects.filter(pk=self.pk, revoked_at=None).update(revoked_at=timezone.now())
