"""Changing a member's role."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import LastManager, Membership, Project, Role, User


def role_of(user: User) -> str:
    """The present role of a member."""
    return Membership.objects.get(user=user).role


def url_of(user: User) -> str:
    """Where the role of a member is changed."""
    return reverse("membership-change", args=[Membership.objects.get(user=user).pk])


def test_a_manager_makes_an_editor_a_manager(client: Client, mara: User, ed: User) -> None:
    client.force_login(mara)
    client.post(url_of(ed), {"role": "manager"})
    assert role_of(ed) == Role.MANAGER


def test_the_last_manager_stays(client: Client, mara: User, ed: User) -> None:
    client.force_login(mara)
    answer = client.post(url_of(mara), {"role": "viewer"}, follow=True)
    assert b"is the only manager" in answer.content
    assert role_of(mara) == Role.MANAGER


def test_one_of_two_managers_may_step_down(client: Client, mara: User, ed: User, project: Project) -> None:
    project.admit(ed, Role.MANAGER)
    client.force_login(mara)
    client.post(url_of(mara), {"role": "viewer"})
    assert role_of(mara) == Role.VIEWER


def test_a_stale_row_does_not_fool_the_check(mara: User, ed: User, project: Project) -> None:
    stale = Membership.objects.get(user=ed)
    project.admit(ed, Role.MANAGER)
    Membership.objects.get(user=mara).change_role(Role.VIEWER)
    with pytest.raises(LastManager):
        stale.change_role(Role.VIEWER)


@pytest.mark.parametrize("role", ["", "owner", "superuser"])
def test_an_unknown_role_changes_nothing(client: Client, mara: User, ed: User, role: str) -> None:
    client.force_login(mara)
    assert b"Choose a role" in client.post(url_of(ed), {"role": role}, follow=True).content
    assert role_of(ed) == Role.EDITOR


def test_an_editor_cannot_promote_themselves(client: Client, ed: User, mara: User) -> None:
    client.force_login(ed)
    assert client.post(url_of(ed), {"role": "manager"}).status_code == 403
    assert role_of(ed) == Role.EDITOR


def test_it_hides_members_from_an_outsider(client: Client, otto: User, ed: User) -> None:
    client.force_login(otto)
    assert client.post(url_of(ed), {"role": "viewer"}).status_code == 404
    assert role_of(ed) == Role.EDITOR
