"""The team page: everybody sees the members, managers also what they can change."""

from __future__ import annotations

from django.test import Client
from pytest_django.fixtures import DjangoAssertNumQueries

from dashboard.models import Invitation, Project, Role, User
from tests.conftest import make_user

URL = "/team/"


def test_a_viewer_sees_members_and_no_controls(client: Client, vera: User, mara: User) -> None:
    client.force_login(vera)
    text = client.get(URL).content.decode()
    assert "mara@example.org" in text
    assert "Invite a member" not in text
    assert "Remove" not in text
    assert "Managers of this project can invite" in text


def test_a_manager_sees_open_invitations_but_no_links(client: Client, mara: User, project: Project) -> None:
    _invitation, secret = Invitation.issue(project, "new@example.org", Role.EDITOR, mara)
    client.force_login(mara)
    text = client.get(URL).content.decode()
    assert "new@example.org" in text
    assert secret not in text


def test_an_editor_sees_no_invitations(client: Client, ed: User, mara: User, project: Project) -> None:
    Invitation.issue(project, "new@example.org", Role.EDITOR, mara)
    client.force_login(ed)
    assert b"new@example.org" not in client.get(URL).content


def test_it_shows_nobody_of_another_project(client: Client, mara: User, otto: User) -> None:
    client.force_login(otto)
    assert b"mara@example.org" not in client.get(URL).content


def test_more_members_cost_no_more_queries(
    client: Client, mara: User, project: Project, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(30):
        make_user(f"person{number}@example.org", project, Role.VIEWER)
    client.force_login(mara)
    with django_assert_max_num_queries(12):
        client.get(URL)


def test_a_name_is_shown_as_text(client: Client, mara: User, ed: User) -> None:
    User.objects.filter(pk=ed.pk).update(first_name="<script>alert(1)</script>")
    client.force_login(mara)
    assert b"<script>alert" not in client.get(URL).content
