"""Users, who sign in with their email address."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.auth.models import AbstractUser, BaseUserManager
from django.db import models
from django.db.models.functions import Lower
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project, Role


class UserManager(BaseUserManager["User"]):
    """Creates users by email address instead of user name."""

    def build_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Return a new user, unsaved. Without a password the account cannot sign in.

        Call it outside of transactions: hashing is slow on purpose, and SQLite has one lock for all writes.
        """
        if not email:
            raise ValueError("A user needs an email address.")
        user = self.model(email=self.normalize_email(email).lower(), **fields)
        user.set_password(password)
        return user

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Build a user and save it."""
        user = self.build_user(email, password, **fields)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Create an administrator of the installation, who sees only projects they are a member of."""
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)


class User(AbstractUser):
    """An account. Its memberships decide what it may see and do in projects."""

    username = None  # type: ignore[assignment]
    email = models.EmailField(_("email address"), unique=True)

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    objects = UserManager()  # type: ignore[misc,assignment]

    class Meta:
        constraints = [models.UniqueConstraint(Lower("email"), name="user_email_unique_in_any_case")]

    def __str__(self) -> str:
        return self.get_full_name() or self.email

    def projects(self, role: Role = Role.VIEWER) -> models.QuerySet[Project]:
        """Return the projects where this user has at least `role`; none for an inactive account."""
        return Project.objects.filter(
            memberships__user=self,
            # Read from the database: an open event stream holds the row as it was when the stream started.
            memberships__user__is_active=True,
            memberships__role__in=role.and_above(),
        )

    def roles(self) -> dict[int, Role]:
        """Return the role in each project of this user; none for an inactive account."""
        memberships = self.memberships.filter(user__is_active=True)
        return {project: Role(role) for project, role in memberships.values_list("project", "role")}

    def may_stop_shared_jobs(self) -> bool:
        """Return whether this user may stop jobs that serve all projects: editors and administrators."""
        return self.is_superuser or self.projects(Role.EDITOR).exists()

    def has_role(self, role: Role, project_id: int) -> bool:
        """Return whether this user has at least `role` in the project."""
        return self.projects(role).filter(pk=project_id).exists()
