"""Projects, members, invitations, and the QuerySets that enforce permissions on every page and API call."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db import models, transaction
from django.http import Http404
from django.utils import timezone
from django.utils.text import slugify
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

RowT = TypeVar("RowT", bound=models.Model, covariant=True)
INVITATION_DAYS = 14
PAGE = 25


class Role(models.TextChoices):
    """Viewers read, editors also start work, managers also administer the project."""

    VIEWER = "viewer", _("Viewer")
    EDITOR = "editor", _("Editor")
    MANAGER = "manager", _("Manager")

    def and_above(self) -> list[Role]:
        """Return this role and all higher ones."""
        order = list(Role)
        return order[order.index(self) :]


class LastManager(Exception):
    """The change would leave the project without a manager."""


class InvitationUsed(Exception):
    """The invitation was already accepted."""


def refusal_for(role: Role) -> str:
    """Return the sentence that names the required role."""
    if role == Role.MANAGER:
        return gettext("Only a manager of this project can do this.")
    return gettext("Only an editor or a manager of this project can do this.")


class Caller(Protocol):
    """A signed-in User or an ApiToken; both know the projects they may use."""

    def projects(self, role: Role = Role.VIEWER) -> models.QuerySet[Project]: ...


def readable_ids(caller: Caller) -> list[int]:
    """Return the ids of the projects that the caller may read, as the database has them now.

    Ids and no subquery: with one, databases sort all rows of a project before they take the newest.
    """
    return list(caller.projects(Role.VIEWER).order_by().values_list("pk", flat=True))


class ProjectQuerySet(models.QuerySet[RowT]):
    """Rows with a `project`. Every view starts from one of these filters, so a miss is a 404."""

    def visible_to(self, caller: Caller) -> Self:
        """Filter rows of projects that the caller may read."""
        return self.filter(project__in=readable_ids(caller))

    def managed_by(self, caller: Caller) -> ProjectQuerySet[RowT]:
        """Filter rows of projects that the caller manages."""
        return self.filter(project__in=caller.projects(Role.MANAGER))

    def fetch(self, caller: Caller, pk: int, role: Role = Role.VIEWER) -> RowT:
        """Return the row for a caller with at least `role` in its project.

        Raises Http404 when the caller may not see the row, and PermissionDenied when their role or their
        token's scope is not sufficient.
        """
        row = self.visible_to(caller).filter(pk=pk).first()
        if row is None:
            raise Http404
        project_id = row.project_id  # type: ignore[attr-defined]
        if role != Role.VIEWER and not caller.projects(role).filter(pk=project_id).exists():
            raise PermissionDenied(refusal_for(role))
        return row

    def page(self, cursor: str | None, size: int = PAGE) -> tuple[list[RowT], int | None]:
        """Return the newest `size` rows before row `cursor`, and the cursor of the next page, if any.

        An invalid cursor means the first page.
        """
        last = parse_id(cursor or "")
        older = self.all() if last is None else self.filter(pk__lt=last)
        rows = list(older.order_by("-pk")[: size + 1])
        return rows[:size], rows[size - 1].pk if len(rows) > size else None


class SharedQuerySet(ProjectQuerySet[RowT]):
    """A ProjectQuerySet in which everyone may read rows without a project (built-in rows)."""

    def visible_to(self, caller: Caller) -> Self:
        """Filter rows of the caller's projects, and built-in rows."""
        return self.filter(models.Q(project=None) | models.Q(project__in=readable_ids(caller)))


class ProjectManager(models.Manager["Project"]):
    def named(self, name: str) -> Project:
        """Return the project with this name; create it if there is none."""
        project, _created = self.get_or_create(name=name, defaults={"slug": self.free_slug(name)})
        return project

    def free_slug(self, name: str) -> str:
        """Return an unused slug made from `name`."""
        stem = slugify(name)[:60] or "project"
        slug, number = stem, 2
        while self.filter(slug=slug).exists():
            slug, number = f"{stem}-{number}", number + 1
        return slug


class Project(models.Model):
    """A team's workspace. Every row except built-in models and presets belongs to one."""

    name = models.CharField(_("name"), max_length=100, unique=True)
    slug = models.SlugField(max_length=80, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ProjectManager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def require(self, caller: Caller, role: Role) -> None:
        """Raise PermissionDenied unless the caller has at least `role` in this project."""
        if not caller.projects(role).filter(pk=self.pk).exists():
            raise PermissionDenied(refusal_for(role))

    def hold(self) -> None:
        """Lock the project's queue and budget until the end of the transaction.

        Lock order: study, project, jobs.
        """
        Project.objects.select_for_update(no_key=True).get(pk=self.pk)

    def admit(self, user: User, role: Role) -> Membership:
        """Add `user` with `role`, or change the role of an existing member."""
        membership, _created = Membership.objects.update_or_create(
            project=self, user=user, defaults={"role": role}
        )
        return membership


class MembershipQuerySet(ProjectQuerySet["Membership"]):
    """Memberships."""


class Membership(models.Model):
    """A user's role in a project."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="memberships")
    role = models.CharField(_("role"), max_length=10, choices=Role.choices)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = MembershipQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "user"], name="membership_once_per_project"),
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="membership_role_known"),
        ]

    def __str__(self) -> str:
        return f"{self.user} · {self.get_role_display()}"

    def is_last_manager(self) -> bool:
        others = Membership.objects.filter(project=self.project, role=Role.MANAGER).exclude(pk=self.pk)
        return self.role == Role.MANAGER and not others.exists()

    def change_role(self, role: Role) -> None:
        """Change the role. Raises LastManager for the only manager."""
        with self._exclusive_change():
            if role != Role.MANAGER and self.is_last_manager():
                raise LastManager
            self.role = role
            self.save(update_fields=["role"])

    def remove(self) -> None:
        """Remove the member. Raises LastManager for the only manager."""
        with self._exclusive_change():
            if self.is_last_manager():
                raise LastManager
            # An open invitation would let the user join again.
            Invitation.objects.open().filter(project=self.project, email=self.user.email).delete()
            self.delete()

    @contextmanager
    def _exclusive_change(self) -> Iterator[None]:
        with transaction.atomic():
            # The write locks the project: two managers who demote each other must not both succeed.
            Project.objects.filter(pk=self.project_id).update(name=models.F("name"))
            self.refresh_from_db(fields=["role"])
            yield


class InvitationQuerySet(ProjectQuerySet["Invitation"]):
    """Invitations."""

    def open(self) -> InvitationQuerySet:
        """Filter invitations that are not accepted and not expired."""
        return self.filter(accepted_at=None, expires_at__gt=timezone.now())

    def with_secret(self, secret: str) -> Invitation | None:
        """Return the open invitation with this secret."""
        return self.open().filter(digest=digest_of(secret)).first()


class Invitation(models.Model):
    """A link that lets one user join a project; only its digest is stored."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="invitations")
    email = models.EmailField(_("email address"))
    role = models.CharField(_("role"), max_length=10, choices=Role.choices)
    digest = models.CharField(max_length=64, unique=True)
    invited_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True, blank=True)

    objects = InvitationQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="invitation_role_known")
        ]

    def __str__(self) -> str:
        return self.email

    @classmethod
    def issue(cls, project: Project, email: str, role: Role, by: User) -> tuple[Invitation, str]:
        """Create an invitation. Return it with the secret of its link, of which only the digest is stored."""
        secret = secrets.token_urlsafe(32)
        invitation = cls.objects.create(
            project=project,
            email=email.lower(),
            role=role,
            digest=digest_of(secret),
            invited_by=by,
            expires_at=timezone.now() + timedelta(days=INVITATION_DAYS),
        )
        return invitation, secret

    def accept(self, user: User) -> Membership:
        """Add `user` to the project or raise their role; never lower it. Save a new user.

        Raises InvitationUsed.
        """
        with transaction.atomic():
            claimed = Invitation.objects.open().filter(pk=self.pk).update(accepted_at=timezone.now())
            # Of several that accept at once, one changes the row; the others create no account.
            if not claimed:
                raise InvitationUsed
            if user.pk is None:
                user.save()
            member = self.project.memberships.filter(user=user).first()
            if member and member.role in Role(self.role).and_above():
                return member
            return self.project.admit(user, Role(self.role))


def parse_id(text: str) -> int | None:
    """Return the primary key in a text from an address, or None if it is none that a row can have."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


def digest_of(secret: str) -> str:
    """Return the SHA-256 of a random secret. Slow hashing is only needed for passwords that users choose."""
    return hashlib.sha256(secret.encode()).hexdigest()
