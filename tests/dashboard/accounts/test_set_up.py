"""The set-up: a one-time code creates the first account and its project."""

from __future__ import annotations

import pytest
from django.test import Client

from dashboard.models import Membership, Project, Role, SetupCode, User
from tests.conftest import PASSWORD

URL = "/set-up/"


@pytest.fixture
def code(db: None) -> str:
    return SetupCode.objects.issue()


def values(code: str, /, **changes: str) -> dict[str, str]:
    """Return the form's values."""
    account = {"email": "mara@example.org", "name": "Mara Lindt", "password": PASSWORD, "project": "Support"}
    return {"code": code, **account, **changes}


def test_first_account_is_superuser_and_manager(client: Client, code: str) -> None:
    answer = client.post(URL, values(code))
    assert answer.headers["Location"] == "/"
    user = User.objects.get()
    assert user.is_superuser
    assert user.check_password(PASSWORD)
    assert str(user) == "Mara Lindt"
    assert Membership.objects.get().role == Role.MANAGER
    assert client.session["_auth_user_id"] == str(user.pk)
    assert not SetupCode.objects.exists(), "the code works once"


def test_code_ignores_spaces_and_case(client: Client, code: str) -> None:
    client.post(URL, values(f" {code.upper()} "))
    assert User.objects.exists()


def test_page_is_404_once_an_account_exists(client: Client, code: str, mara: User) -> None:
    assert client.get(URL).status_code == 404
    assert client.post(URL, values(code)).status_code == 404
    assert User.objects.count() == 1


def test_wrong_code_creates_nothing(client: Client, code: str) -> None:
    answer = client.post(URL, values("0000-0000-0000-0000"))
    assert answer.status_code == 422
    assert b"The code is wrong" in answer.content
    assert b"Mara Lindt" in answer.content
    assert not User.objects.exists()
    assert not Project.objects.exists()


def test_code_fails_after_ten_wrong_tries(client: Client, code: str) -> None:
    for _try in range(10):
        client.post(URL, values("0000-0000-0000-0000"))
    client.post(URL, values(code))
    assert not User.objects.exists()


def test_error_in_another_field_uses_no_try(client: Client, code: str) -> None:
    for _try in range(12):
        assert client.post(URL, values(code, password="short")).status_code == 422
    assert SetupCode.objects.get().tries == 0
    client.post(URL, values(code))
    assert User.objects.exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("password", "short", "at least 12 characters"),
        ("password", "password1234", "too common"),
        ("password", "123456789012", "entirely numeric"),
        ("password", "mara@example.org", "too similar"),
        ("email", "nobody", "valid email"),
        ("project", "  ", "required"),
        ("code", "", "required"),
    ],
)
def test_bad_input_is_explained(client: Client, code: str, field: str, value: str, message: str) -> None:
    answer = client.post(URL, values(code, **{field: value}))
    assert answer.status_code == 422
    assert message in answer.content.decode()
    assert not User.objects.exists()
