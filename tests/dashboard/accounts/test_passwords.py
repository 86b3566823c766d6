"""Rules for passwords, at every place that sets one, and where they are hashed."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.hashers import Argon2PasswordHasher
from django.core import mail
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from dashboard.models import Invitation, Project, Role, SetupCode, User
from tests.conftest import PASSWORD, make_user

EMAIL = "nia.newman@example.org"
GOOD = "another-long-word"
WEAK = {
    "short": "eleven-char",
    "common": "password1234",
    "numeric": "123456789012",
    "similar": "nia.newman@example",
}


def set_up(password: str) -> None:
    values = {"code": SetupCode.objects.issue(), "email": EMAIL, "name": "Nia", "project": "Support"}
    Client().post("/set-up/", {**values, "password": password})


def accept_invitation(password: str) -> None:
    project = Project.objects.named("Support")
    mara = make_user("mara@example.org", project, Role.MANAGER)
    secret = Invitation.issue(project, EMAIL, Role.EDITOR, mara)[1]
    Client().post(reverse("invitation-accept", args=[secret]), {"name": "Nia", "password": password})


def create_account(password: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(password + "\n"))
        with contextlib.suppress(CommandError):
            command = {"email": EMAIL, "project": "Support", "role": "viewer", "stdout": io.StringIO()}
            call_command("create_account", **command)


def change_password(password: str) -> None:
    client = Client()
    client.force_login(make_user(EMAIL))
    new = {"oldpassword": PASSWORD, "password1": password, "password2": password}
    client.post(reverse("account_change_password"), new)


def set_first_password(password: str) -> None:
    user = make_user(EMAIL)
    user.set_unusable_password()
    user.save()
    client = Client()
    client.force_login(user)
    client.post(reverse("account_set_password"), {"password1": password, "password2": password})


def reset_password(password: str) -> None:
    client = Client()
    client.post(reverse("account_reset_password"), {"email": make_user(EMAIL).email})
    link = re.search(r"http://testserver(\S+)", str(mail.outbox[-1].body))
    assert link
    action = client.get(link[1], follow=True).redirect_chain[-1][0]
    client.post(action, {"password1": password, "password2": password})


def change_in_admin(password: str) -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("root@example.org"))
    address = reverse("admin:auth_user_password_change", args=[make_user(EMAIL).pk])
    client.post(address, {"usable_password": "true", "password1": password, "password2": password})


def create_in_admin(password: str) -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("root@example.org"))
    values = {"usable_password": "true", "password1": password, "password2": password}
    added = client.post(reverse("admin:dashboard_user_add"), {"email": EMAIL.title(), **values})
    client.post(added.headers["Location"].replace("change/", "password/"), values)


PLACES = [
    set_up,
    accept_invitation,
    create_account,
    change_password,
    set_first_password,
    reset_password,
    change_in_admin,
    create_in_admin,
]


@pytest.fixture(autouse=True)
def fresh_limits(db: None) -> None:
    """Clear the cache, which counts tries."""
    cache.clear()


@pytest.mark.parametrize("place", PLACES)
def test_good_password_is_set(place: Callable[[str], None]) -> None:
    place(GOOD)
    assert User.objects.get(email=EMAIL).check_password(GOOD)


@pytest.mark.parametrize("password", WEAK.values(), ids=WEAK)
@pytest.mark.parametrize("place", PLACES)
def test_weak_password_is_refused(place: Callable[[str], None], password: str) -> None:
    place(password)
    user = User.objects.filter(email=EMAIL).first()
    assert user is None or not user.check_password(password)


class OutsideTransactions(Argon2PasswordHasher):
    """Fails where hashing, which is slow on purpose, would keep the database locked."""

    def encode(self, *arguments: Any) -> str:
        assert not connection.in_atomic_block
        return super().encode(*arguments)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("place", PLACES)
def test_no_password_is_hashed_while_the_database_is_locked(
    place: Callable[[str], None], settings: Settings
) -> None:
    settings.PASSWORD_HASHERS = [f"{__name__}.{OutsideTransactions.__name__}", *settings.PASSWORD_HASHERS]
    place(GOOD)
    assert User.objects.filter(email=EMAIL).exists()
