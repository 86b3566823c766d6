"""The first visit: a one-time code makes the first manager and their project."""

from __future__ import annotations

import pytest
from django.test import Client

from dashboard.models import Membership, Project, Role, SetupCode, User
from tests.conftest import PASSWORD

URL = "/set-up/"


@pytest.fixture
def code(db: None) -> str:
    """The code that `make start` prints."""
    return SetupCode.objects.issue()


def entered(right: str, **changes: str) -> dict[str, str]:
    """What the first visitor enters."""
    first = {"email": "mara@example.org", "name": "Mara Lindt", "password": PASSWORD, "project": "Support"}
    return {"code": right, **first, **changes}


def test_it_makes_the_first_manager_who_is_superuser(client: Client, code: str) -> None:
    answer = client.post(URL, entered(code))
    assert answer.headers["Location"] == "/"
    user = User.objects.get()
    assert user.is_superuser
    assert user.check_password(PASSWORD)
    assert str(user) == "Mara Lindt"
    assert Membership.objects.get().role == Role.MANAGER
    assert client.session["_auth_user_id"] == str(user.pk)


def test_a_code_may_be_pasted_with_spaces_and_capitals(client: Client, code: str) -> None:
    client.post(URL, entered(f" {code.upper()} "))
    assert User.objects.exists()


def test_the_page_is_gone_once_somebody_exists(client: Client, code: str, mara: User) -> None:
    assert client.get(URL).status_code == 404
    assert client.post(URL, entered(code)).status_code == 404
    assert User.objects.count() == 1


def test_a_wrong_code_makes_nothing(client: Client, code: str) -> None:
    answer = client.post(URL, entered("0000-0000-0000-0000"))
    assert answer.status_code == 422
    assert b"The code is wrong" in answer.content
    assert b"Mara Lindt" in answer.content
    assert not User.objects.exists()
    assert not Project.objects.exists()


def test_after_ten_wrong_codes_the_right_one_fails_too(client: Client, code: str) -> None:
    for _try in range(10):
        client.post(URL, entered("0000-0000-0000-0000"))
    client.post(URL, entered(code))
    assert not User.objects.exists()


def test_a_typing_error_elsewhere_costs_no_try(client: Client, code: str) -> None:
    for _try in range(12):
        assert client.post(URL, entered(code, password="short")).status_code == 422
    assert SetupCode.objects.get().tries == 0
    client.post(URL, entered(code))
    assert User.objects.exists()


def test_the_code_works_once(client: Client, code: str) -> None:
    client.post(URL, entered(code))
    assert not SetupCode.objects.exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("password", "short", "at least 12 characters"),
        ("password", "password1234", "too common"),
        ("password", "mara@example.org", "too similar"),
        ("email", "nobody", "valid email"),
        ("email", "", "required"),
        ("project", "  ", "required"),
        ("name", "x" * 151, "at most 150"),
        ("code", "", "required"),
    ],
)
def test_it_names_what_is_wrong(client: Client, code: str, field: str, value: str, message: str) -> None:
    answer = client.post(URL, entered(code, **{field: value}))
    assert answer.status_code == 422
    assert message in answer.content.decode()
    assert not User.objects.exists()


def test_without_a_code_nobody_gets_in(client: Client, db: None) -> None:
    assert client.post(URL, entered("")).status_code == 422
    assert client.post(URL, entered("anything")).status_code == 422
    assert not User.objects.exists()
