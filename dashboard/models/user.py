"""People who sign in with their e-mail address."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.auth.models import AbstractUser, BaseUserManager
from django.db import models
from django.db.models.functions import Lower
from django.utils.translation import gettext_lazy as _

from dashboard.models.project import Project, Role


class UserManager(BaseUserManager["User"]):
    """Makes users from an e-mail address instead of a user name."""

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        """A user with a hashed password; without one, the account cannot sign in by password."""
        if not email:
            raise ValueError("A user needs an e-mail address.")
        user = self.model(email=self.normalize_email(email).lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> User:
        """A user who administers the installation; sees no project unless a member of it."""
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)


class User(AbstractUser):
    """A person. What they may see and do in a project is their Membership's role."""

    username = None  # type: ignore[assignment]
    email = models.EmailField(_("e-mail address"), unique=True)

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    objects = UserManager()  # type: ignore[misc,assignment]

    class Meta:
        constraints = [models.UniqueConstraint(Lower("email"), name="user_email_unique_in_any_case")]

    def __str__(self) -> str:
        return self.get_full_name() or self.email

    def projects(self, role: Role = Role.VIEWER) -> models.QuerySet[Project]:
        """The projects where this person has at least `role`; none once the account is retired."""
        return Project.objects.filter(
            memberships__user=self,
            # Asked of the database: an open stream holds the person as they were when it began.
            memberships__user__is_active=True,
            memberships__role__in=role.and_above(),
        )
