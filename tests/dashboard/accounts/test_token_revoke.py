"""Revoking API tokens."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import ApiToken, Project, Role, User


@pytest.fixture
def eds(ed: User, project: Project) -> ApiToken:
    """A token of Ed."""
    return ApiToken.issue(project, ed, "nightly upload")[0]


def revoke(client: Client, token: ApiToken) -> int:
    """The status of the request."""
    return client.post(reverse("token-revoke", args=[token.pk])).status_code


def test_its_owner_revokes_it(client: Client, ed: User, eds: ApiToken) -> None:
    client.force_login(ed)
    assert revoke(client, eds) == 302
    assert not ApiToken.objects.working().exists()
    assert eds.prefix.encode() not in client.get("/settings/tokens/").content


def test_a_manager_revokes_anybodys(client: Client, mara: User, eds: ApiToken) -> None:
    client.force_login(mara)
    assert revoke(client, eds) == 302
    assert not ApiToken.objects.working().exists()


def test_another_editor_does_not_know_it(client: Client, eds: ApiToken, project: Project, otto: User) -> None:
    project.admit(otto, Role.EDITOR)
    client.force_login(otto)
    assert revoke(client, eds) == 404
    assert ApiToken.objects.working().exists()


def test_it_hides_the_token_from_an_outsider(client: Client, otto: User, eds: ApiToken) -> None:
    client.force_login(otto)
    assert revoke(client, eds) == 404
    assert ApiToken.objects.working().exists()
