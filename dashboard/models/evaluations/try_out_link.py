"""Links by which people without an account compare two models blind and vote."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext as _

from dashboard.models.accounts.access import is_link_secret, new_link_secret
from dashboard.models.accounts.project import Project, ProjectQuerySet, digest_of
from dashboard.models.adapters.adapter import Adapter
from dashboard.models.catalog.base_model import BaseModel

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

TRY_OUT_PROMPTS = (50, 200, 1000)


class TryOutLinkQuerySet(ProjectQuerySet["TryOutLink"]):
    """Queries of links."""

    def working(self) -> TryOutLinkQuerySet:
        """Filter links that are neither revoked nor expired."""
        return self.filter(revoked_at=None, expires_at__gt=timezone.now())

    def with_secret(self, secret: str) -> TryOutLink | None:
        """Return the working link with this secret."""
        if not is_link_secret(secret):
            return None
        links = self.working().select_related("project", "base_model", "created_by")
        return links.filter(digest=digest_of(secret)).first()

    def with_votes(self) -> TryOutLinkQuerySet:
        """Annotate `votes`, and prefetch the adapters."""
        votes = models.Count("comparisons", filter=~models.Q(comparisons__vote=""))
        return self.annotate(votes=votes).select_related("base_model").prefetch_related("adapters")


class TryOutLink(models.Model):
    """A link to blind answers of some models until it expires, is revoked, or has answered its prompts."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="try_out_links")
    base_model = models.ForeignKey(BaseModel, models.CASCADE, related_name="+")
    with_base = models.BooleanField()  # the base model is one of the models
    adapters = models.ManyToManyField(Adapter, related_name="+")
    system = models.TextField(blank=True)
    temperature = models.FloatField()
    max_tokens = models.PositiveIntegerField()
    with_names = models.BooleanField(default=False)  # visitors see the names after their vote
    digest = models.CharField(max_length=64, unique=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)
    most_prompts = models.PositiveIntegerField()
    prompts = models.PositiveIntegerField(default=0)

    objects = TryOutLinkQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(prompts__lte=models.F("most_prompts")), name="try_out_link_within_limit"
            )
        ]

    def __str__(self) -> str:
        names = [_("Base model")] if self.with_base else []
        return " · ".join([*names, *map(str, self.adapters.all())])

    @classmethod
    def issue(
        cls,
        project: Project,
        by: User,
        base: BaseModel,
        adapters: Iterable[Adapter | None],
        *,
        days: int,
        most_prompts: int,
        max_tokens: int,
        temperature: float = 0.0,
        system: str = "",
        with_names: bool = False,
    ) -> tuple[TryOutLink, str]:
        """Create a link to the base model (None) and adapters; return it with its secret, shown once."""
        chosen = set(adapters)
        secret = new_link_secret()
        link = cls.objects.create(
            project=project,
            base_model=base,
            with_base=None in chosen,
            system=system,
            temperature=temperature,
            max_tokens=max_tokens,
            with_names=with_names,
            digest=digest_of(secret),
            created_by=by,
            expires_at=timezone.now() + timedelta(days=days),
            most_prompts=most_prompts,
        )
        link.adapters.set([adapter for adapter in chosen if adapter])
        return link, secret

    def take_prompt(self) -> bool:
        """Count one more prompt. Return False if the link has answered all that it may."""
        # The row count is the limit: of two visitors, one gets the last prompt.
        left = TryOutLink.objects.working().filter(pk=self.pk, prompts__lt=models.F("most_prompts"))
        return bool(left.update(prompts=models.F("prompts") + 1))

    def revoke(self) -> None:
        TryOutLink.objects.filter(pk=self.pk, revoked_at=None).update(revoked_at=timezone.now())
