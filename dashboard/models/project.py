"""Projects, who belongs to them, and the QuerySet rules that every page and API call starts from."""

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
    from dashboard.models.user import User

RowT = TypeVar("RowT", bound=models.Model, covariant=True)
INVITATION_DAYS = 14
PAGE = 25


class Role(models.TextChoices):
    """What a member may do: a viewer reads, an editor also works, a manager also decides."""

    VIEWER = "viewer", _("Viewer")
    EDITOR = "editor", _("Editor")
    MANAGER = "manager", _("Manager")

    def and_above(self) -> list[Role]:
        """This role and all that may do more."""
        order = list(Role)
        return order[order.index(self) :]


class LastManager(Exception):
    """The act would leave a project without a manager, and nobody could then change its members."""


class InvitationUsed(Exception):
    """Somebody has joined by this invitation already."""


def refusal_for(role: Role) -> str:
    """Who can do what the caller may not."""
    if role == Role.MANAGER:
        return gettext("Only a manager of this project can do this.")
    return gettext("Only an editor or a manager of this project can do this.")


class Caller(Protocol):
    """Whoever asks: a signed-in User or an ApiToken. Both know the projects they may act in."""

    def projects(self, role: Role = Role.VIEWER) -> models.QuerySet[Project]: ...


class ProjectQuerySet(models.QuerySet[RowT]):
    """Rows with a `project`; every view starts from one of these three, and a miss is 404."""

    def visible_to(self, caller: Caller) -> Self:
        """Rows of projects that the caller may read."""
        return self.filter(project__in=caller.projects(Role.VIEWER))

    def editable_by(self, caller: Caller) -> ProjectQuerySet[RowT]:
        """Rows of projects in which the caller may work."""
        return self.filter(project__in=caller.projects(Role.EDITOR))

    def managed_by(self, caller: Caller) -> ProjectQuerySet[RowT]:
        """Rows of projects that the caller manages."""
        return self.filter(project__in=caller.projects(Role.MANAGER))

    def fetch(self, caller: Caller, pk: int, role: Role = Role.VIEWER) -> RowT:
        """The row, for a caller with at least `role` in its project.

        Http404 when the caller may not know that it exists; PermissionDenied when they may see it but the
        role (or their token's scope) does not allow the act.
        """
        row = self.visible_to(caller).filter(pk=pk).first()
        if row is None:
            raise Http404
        project_id = row.project_id  # type: ignore[attr-defined]
        if role != Role.VIEWER and not caller.projects(role).filter(pk=project_id).exists():
            raise PermissionDenied(refusal_for(role))
        return row

    def page(self, cursor: str | None, size: int = PAGE) -> tuple[list[RowT], int | None]:
        """The newest `size` rows older than row `cursor`, and the cursor of the page after them, if any.

        Anything that is no row's number means the first page.
        """
        known = cursor and cursor.isdecimal() and len(cursor) < 19
        older = self.filter(pk__lt=int(cursor or 0)) if known else self.all()
        rows = list(older.order_by("-pk")[: size + 1])
        return rows[:size], rows[size - 1].pk if len(rows) > size else None


class SharedQuerySet(ProjectQuerySet[RowT]):
    """Like ProjectQuerySet, but rows without a project (built in) can be read by everybody."""

    def visible_to(self, caller: Caller) -> Self:
        """Rows of the caller's projects, and the built-in ones."""
        return self.filter(models.Q(project=None) | models.Q(project__in=caller.projects(Role.VIEWER)))


class ProjectManager(models.Manager["Project"]):
    """Finds and founds projects by name."""

    def named(self, name: str) -> Project:
        """The project called `name`, made when there is none."""
        project, _created = self.get_or_create(name=name, defaults={"slug": self.free_slug(name)})
        return project

    def free_slug(self, name: str) -> str:
        """A slug made from `name` that no project has yet."""
        stem = slugify(name)[:60] or "project"
        slug, number = stem, 2
        while self.filter(slug=slug).exists():
            slug, number = f"{stem}-{number}", number + 1
        return slug


class Project(models.Model):
    """A team's space. Everything but the built-in model, presets and sample belongs to one."""

    name = models.CharField(_("name"), max_length=100, unique=True)
    slug = models.SlugField(max_length=80, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ProjectManager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def require(self, caller: Caller, role: Role) -> None:
        """PermissionDenied, saying who may do it, unless the caller has at least `role` here."""
        if not caller.projects(role).filter(pk=self.pk).exists():
            raise PermissionDenied(refusal_for(role))

    def hold(self) -> None:
        """Until the end of this transaction nobody else moves its jobs, or starts work within its budget.

        Whoever locks several rows has this lock before those of jobs, and after that of a study.
        """
        Project.objects.select_for_update(no_key=True).get(pk=self.pk)

    def admit(self, user: User, role: Role) -> Membership:
        """Make `user` a member with `role`, or change the role they have."""
        membership, _created = Membership.objects.update_or_create(
            project=self, user=user, defaults={"role": role}
        )
        return membership


class MembershipQuerySet(ProjectQuerySet["Membership"]):
    """Members of projects."""


class Membership(models.Model):
    """A person's role in a project."""

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
        """Whether the project would have no manager without this membership."""
        others = Membership.objects.filter(project=self.project, role=Role.MANAGER).exclude(pk=self.pk)
        return self.role == Role.MANAGER and not others.exists()

    def change_role(self, role: Role) -> None:
        """Give this member another role. Raises LastManager instead of losing the last one."""
        with self._sole_change():
            if role != Role.MANAGER and self.is_last_manager():
                raise LastManager
            self.role = role
            self.save(update_fields=["role"])

    def remove(self) -> None:
        """Take this member out of the project. Raises LastManager instead of losing the last one."""
        with self._sole_change():
            if self.is_last_manager():
                raise LastManager
            # An invitation that was never used would let them in again.
            Invitation.objects.open().filter(project=self.project, email=self.user.email).delete()
            self.delete()

    @contextmanager
    def _sole_change(self) -> Iterator[None]:
        with transaction.atomic():
            # Touching the project makes two managers who demote each other wait for one another.
            Project.objects.filter(pk=self.project_id).update(name=models.F("name"))
            self.refresh_from_db(fields=["role"])
            yield


class InvitationQuerySet(ProjectQuerySet["Invitation"]):
    """Invitations that wait for an answer, found by their secret."""

    def open(self) -> InvitationQuerySet:
        """Not used and not expired."""
        return self.filter(accepted_at=None, expires_at__gt=timezone.now())

    def with_secret(self, secret: str) -> Invitation | None:
        """The open invitation that this link belongs to."""
        return self.open().filter(digest=digest_of(secret)).first()


class Invitation(models.Model):
    """A link that lets one person join a project; only its digest is stored."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="invitations")
    email = models.EmailField(_("e-mail address"))
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
        """A new invitation and the secret for its link, which is shown once."""
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
        """Admit `user`, or raise their role: it never lowers one. Used before, it raises InvitationUsed."""
        with transaction.atomic():
            taken = Invitation.objects.filter(pk=self.pk, accepted_at=None).update(accepted_at=timezone.now())
            if not taken:
                raise InvitationUsed
            member = self.project.memberships.filter(user=user).first()
            if member and member.role in Role(self.role).and_above():
                return member
            return self.project.admit(user, Role(self.role))


def digest_of(secret: str) -> str:
    """SHA-256 of a secret with 256 random bits; slow hashing is for passwords that people choose."""
    return hashlib.sha256(secret.encode()).hexdigest()
