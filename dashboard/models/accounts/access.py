"""API tokens, secrets of public links, and the one-time code for the set-up of the first account."""

from __future__ import annotations

import hmac
import secrets
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from django.conf import settings
from django.core import signing
from django.db import OperationalError, models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import (
    Caller,
    Membership,
    Project,
    ProjectQuerySet,
    Role,
    digest_of,
)

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

TOKEN_PREFIX = "gw_"  # noqa: S105 - the public part that secret scanners look for
SETUP_TRIES = 10
_LINK_SIGNER = signing.Signer(salt="share-link", sep=".")


def new_link_secret() -> str:
    """Return the secret of a new public link."""
    return _LINK_SIGNER.sign(secrets.token_urlsafe(32))


def is_link_secret(secret: str) -> bool:
    """Return whether this installation has made the secret: a made-up one costs no look into the database."""
    try:
        _LINK_SIGNER.unsign(secret)
    except signing.BadSignature:
        return False
    return True


class ApiTokenQuerySet(ProjectQuerySet["ApiToken"]):
    """API tokens."""

    def working(self) -> ApiTokenQuerySet:
        """Filter unrevoked, unexpired tokens whose owner is an active member of the project."""
        unexpired = models.Q(expires_at=None) | models.Q(expires_at__gt=timezone.now())
        owner = {"user": models.OuterRef("user"), "project": models.OuterRef("project")}
        is_member = models.Exists(Membership.objects.filter(**owner))
        return self.filter(unexpired, is_member, revoked_at=None, user__is_active=True)

    def manageable_by(self, caller: Caller, owner: User) -> Self:
        """Filter the tokens of `owner` and all tokens of the projects that the caller manages."""
        allowed = models.Q(user=owner) | models.Q(project__in=caller.projects(Role.MANAGER))
        return self.visible_to(caller).filter(allowed).select_related("user")

    def authenticate(self, secret: str) -> ApiToken | None:
        """Return the working token with this secret, and record its use."""
        token = self.working().select_related("user", "project").filter(digest=digest_of(secret)).first()
        if token is None or not hmac.compare_digest(token.digest, digest_of(secret)):
            return None
        now = timezone.now()
        # Once a minute is precise enough, and most reads then write nothing.
        if token.last_used_at is None or now - token.last_used_at > timedelta(minutes=1):
            # A read must not fail because another process holds SQLite's write lock.
            with suppress(OperationalError):
                self.filter(pk=token.pk).update(last_used_at=now)
        return token


class ApiToken(models.Model):
    """A key of a program for one project. It acts for its owner, with at most the owner's current role."""

    class Scope(models.TextChoices):
        READ = "read", _("Read")
        WRITE = "write", _("Read and write")

    project = models.ForeignKey(Project, models.CASCADE, related_name="tokens")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="tokens")
    name = models.CharField(_("name"), max_length=100)
    prefix = models.CharField(max_length=12)
    digest = models.CharField(max_length=64, unique=True)
    scope = models.CharField(_("scope"), max_length=10, choices=Scope.choices, default=Scope.READ)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.CheckConstraint(condition=models.Q(scope__in=["read", "write"]), name="token_scope_known")
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @classmethod
    def issue(
        cls, project: Project, user: User, name: str, *, scope: Scope = Scope.WRITE, days: int | None = None
    ) -> tuple[ApiToken, str]:
        """Create a token. Return it with its secret, of which only the digest is stored."""
        secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
        token = cls.objects.create(
            project=project,
            user=user,
            name=name,
            prefix=secret[:8],
            digest=digest_of(secret),
            scope=scope,
            expires_at=timezone.now() + timedelta(days=days) if days else None,
        )
        return token, secret

    def projects(self, role: Role = Role.VIEWER) -> models.QuerySet[Project]:
        """Return the token's project if its scope and its owner's role allow `role`, else none."""
        if self.scope == self.Scope.READ and role != Role.VIEWER:
            return Project.objects.none()
        return self.user.projects(role).filter(pk=self.project_id)

    def revoke(self) -> None:
        """Reject this token from now on."""
        ApiToken.objects.filter(pk=self.pk, revoked_at=None).update(revoked_at=timezone.now())

    def is_working(self) -> bool:
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > timezone.now())


class SetupCodeManager(models.Manager["SetupCode"]):
    """Issues and checks the set-up code, which proves access to the server's terminal."""

    def issue(self) -> str:
        """Create a code that replaces any earlier one. Call it only while there is no user."""
        code = "-".join(secrets.token_hex(2) for _group in range(4))
        self.all().delete()
        self.create(digest=digest_of(code))
        return code

    def check_code(self, code: str) -> bool:
        """Count a try and return whether `code` is correct. After SETUP_TRIES tries no code is."""
        has_tries_left = self.filter(tries__lt=SETUP_TRIES).update(tries=models.F("tries") + 1)
        current = self.first()
        return bool(
            has_tries_left
            and current
            and hmac.compare_digest(current.digest, digest_of(code.strip().lower()))
        )


class SetupCode(models.Model):
    """The one-time code that `make start` prints, as a digest."""

    digest = models.CharField(max_length=64)
    tries = models.PositiveSmallIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = SetupCodeManager()

    def __str__(self) -> str:
        return f"set-up code of {self.created_at:%Y-%m-%d %H:%M}"
