"""Taking somebody out of a project."""

from __future__ import annotations

from django.test import Client
from django.urls import reverse

from dashboard.models import ApiToken, Invitation, Membership, Project, Role, User


def url_of(user: User) -> str:
    """Where a member is removed."""
    return reverse("membership-remove", args=[Membership.objects.get(user=user).pk])


def test_the_removed_person_sees_the_project_no_more(client: Client, mara: User, ed: User) -> None:
    client.force_login(mara)
    assert b"is no longer a member" in client.post(url_of(ed), follow=True).content
    assert not ed.projects().exists()


def test_their_token_stops_working_for_the_project(
    client: Client, mara: User, ed: User, project: Project
) -> None:
    token, _secret = ApiToken.issue(project, ed, "nightly")
    client.force_login(mara)
    client.post(url_of(ed))
    assert not token.projects().exists()


def test_an_invitation_that_they_never_used_lets_them_in_no_more(
    client: Client, mara: User, ed: User, project: Project, other_project: Project
) -> None:
    _theirs, secret = Invitation.issue(project, ed.email, Role.MANAGER, mara)
    _elsewhere, kept = Invitation.issue(other_project, ed.email, Role.VIEWER, mara)
    client.force_login(mara)
    client.post(url_of(ed))
    assert Invitation.objects.with_secret(secret) is None
    assert Invitation.objects.with_secret(kept)


def test_the_last_manager_cannot_be_removed(client: Client, mara: User, ed: User) -> None:
    client.force_login(mara)
    assert b"is the only manager" in client.post(url_of(mara), follow=True).content
    assert Membership.objects.filter(user=mara).exists()


def test_it_refuses_an_editor(client: Client, ed: User, vera: User) -> None:
    client.force_login(ed)
    assert client.post(url_of(vera)).status_code == 403
    assert Membership.objects.filter(user=vera).exists()


def test_it_hides_members_from_an_outsider(client: Client, otto: User, ed: User) -> None:
    client.force_login(otto)
    assert client.post(url_of(ed)).status_code == 404
    assert Membership.objects.filter(user=ed).exists()
