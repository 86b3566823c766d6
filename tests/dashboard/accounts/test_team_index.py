"""The team page: all members see the list, managers also invitations and controls."""

from __future__ import annotations

from django.test import Client
from pytest_django.fixtures import DjangoAssertNumQueries

from dashboard.models import Invitation, Project, Role, User
from tests.conftest import make_user

URL = "/team/"


def test_viewer_sees_members_without_controls(client: Client, vera: User, mara: User) -> None:
    client.force_login(vera)
    text = client.get(URL).content.decode()
    assert "mara@example.org" in text
    assert "Invite a member" not in text
    assert "Remove" not in text
    assert "Managers of this project can invite" in text


def test_only_managers_see_invitations_without_links(
    client: Client, ed: User, mara: User, project: Project
) -> None:
    _invitation, secret = Invitation.issue(project, "new@example.org", Role.EDITOR, mara)
    client.force_login(ed)
    assert b"new@example.org" not in client.get(URL).content
    client.force_login(mara)
    text = client.get(URL).content.decode()
    assert "new@example.org" in text
    assert secret not in text


def test_members_of_other_projects_are_hidden(client: Client, mara: User, otto: User) -> None:
    client.force_login(otto)
    assert b"mara@example.org" not in client.get(URL).content


def test_number_of_queries_is_constant(
    client: Client, mara: User, project: Project, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(30):
        make_user(f"user{number}@example.org", project, Role.VIEWER)
    client.force_login(mara)
    with django_assert_max_num_queries(12):
        client.get(URL)


def test_names_are_escaped(client: Client, mara: User, ed: User) -> None:
    User.objects.filter(pk=ed.pk).update(first_name="<script>alert(1)</script>")
    client.force_login(mara)
    assert b"<script>alert" not in client.get(URL).content
