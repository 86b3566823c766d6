"""Members: change of role and removal on the page. The API's tests cover refusals."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import ApiToken, Invitation, LastManager, Membership, Project, Role, User


def post(client: Client, verb: str, user: User, **data: str) -> str:
    """Change or remove a member as the signed-in user. Return the page."""
    member = Membership.objects.get(user=user)
    return client.post(reverse(f"membership-{verb}", args=[member.pk]), data, follow=True).content.decode()


def role_of(user: User) -> str:
    return Membership.objects.get(user=user).role


def test_manager_changes_roles(client: Client, mara: User, ed: User) -> None:
    client.force_login(mara)
    post(client, "change", ed, role="manager")
    assert role_of(ed) == Role.MANAGER
    post(client, "change", mara, role="viewer")
    assert role_of(mara) == Role.VIEWER, "one manager is left"


def test_last_manager_stays(client: Client, mara: User, ed: User) -> None:
    client.force_login(mara)
    assert "is the only manager" in post(client, "change", mara, role="viewer")
    assert "is the only manager" in post(client, "remove", mara)
    assert role_of(mara) == Role.MANAGER


def test_last_manager_stays_with_outdated_row(mara: User, ed: User, project: Project) -> None:
    outdated = Membership.objects.get(user=ed)
    project.admit(ed, Role.MANAGER)
    Membership.objects.get(user=mara).change_role(Role.VIEWER)
    with pytest.raises(LastManager):
        outdated.change_role(Role.VIEWER)


def test_unknown_role_changes_nothing(client: Client, mara: User, ed: User) -> None:
    client.force_login(mara)
    assert "Choose a role" in post(client, "change", ed, role="owner")
    assert role_of(ed) == Role.EDITOR


def test_removed_member_loses_access(
    client: Client, mara: User, ed: User, project: Project, other_project: Project
) -> None:
    token, _secret = ApiToken.issue(project, ed, "nightly")
    _invitation, secret = Invitation.issue(project, ed.email, Role.MANAGER, mara)
    _elsewhere, kept = Invitation.issue(other_project, ed.email, Role.VIEWER, mara)
    client.force_login(mara)
    post(client, "remove", ed)
    assert not ed.projects().exists()
    assert not token.projects().exists()
    assert Invitation.objects.with_secret(secret) is None
    assert Invitation.objects.with_secret(kept)
