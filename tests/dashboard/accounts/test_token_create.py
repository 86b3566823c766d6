"""New API tokens: shown once, hashed at rest, never with more than the owner's role."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from dashboard.models import ApiToken, Project, User

URL = "/settings/tokens/new/"
NEW = {"name": "nightly upload", "scope": "write", "lifetime": "90"}


def test_its_secret_is_shown_once_and_works(client: Client, ed: User, project: Project) -> None:
    client.force_login(ed)
    answer = client.post(URL, NEW)
    assert answer.status_code == 201
    assert "no-store" in answer.headers["Cache-Control"]
    found = re.search(r"gw_[\w-]{40,}", answer.content.decode())
    assert found
    token = ApiToken.objects.authenticate(found[0])
    assert token is not None
    assert (token.user, token.project, token.scope) == (ed, project, ApiToken.Scope.WRITE)
    assert found[0] not in client.get("/settings/tokens/").content.decode()
    assert found[0] not in str(ApiToken.objects.values().get())


@pytest.mark.parametrize(("lifetime", "days"), [("30", 30), ("90", 90), ("365", 365)])
def test_it_expires_as_chosen(client: Client, ed: User, lifetime: str, days: int) -> None:
    client.force_login(ed)
    client.post(URL, {**NEW, "lifetime": lifetime})
    expires = ApiToken.objects.get().expires_at
    assert expires is not None
    assert abs(expires - timezone.now() - timedelta(days=days)) < timedelta(minutes=1)


def test_it_may_never_expire(client: Client, ed: User) -> None:
    client.force_login(ed)
    client.post(URL, {**NEW, "lifetime": "never"})
    assert ApiToken.objects.get().expires_at is None


def test_a_viewer_gets_read_only(client: Client, vera: User) -> None:
    client.force_login(vera)
    assert client.post(URL, NEW).status_code == 422
    assert client.post(URL, {**NEW, "scope": "read"}).status_code == 201
    assert ApiToken.objects.get().scope == ApiToken.Scope.READ


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"scope": "admin"},
        {"lifetime": "7"},
        {"lifetime": ""},
        {"scope": ""},
    ],
)
def test_it_refuses_bad_input(client: Client, ed: User, change: dict[str, str]) -> None:
    client.force_login(ed)
    answer = client.post(URL, {**NEW, **change})
    assert answer.status_code == 422
    assert b"error-summary" in answer.content
    assert not ApiToken.objects.exists()


def test_owner_and_project_are_not_taken_from_the_form(
    client: Client, ed: User, mara: User, project: Project, other_project: Project
) -> None:
    client.force_login(ed)
    client.post(URL, {**NEW, "user": str(mara.pk), "project": str(other_project.pk)})
    token = ApiToken.objects.get()
    assert (token.user, token.project) == (ed, project)


def test_its_address_leads_back_to_the_list(client: Client, ed: User) -> None:
    client.force_login(ed)
    assert client.get(URL).headers["Location"] == "/settings/tokens/"
