"""Accepting an invitation, with and without an account, and links that no longer work."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dashboard.models import Invitation, InvitationUsed, Membership, Project, Role, User
from tests.conftest import PASSWORD

NEWCOMER = {"name": "Nia New", "password": PASSWORD}


@pytest.fixture
def url(project: Project, mara: User) -> str:
    """Return the link of an invitation for nia@example.org as editor."""
    return url_for(project, mara, "nia@example.org")


def url_for(project: Project, by: User, email: str) -> str:
    """Return the link of a new invitation."""
    return reverse("invitation-accept", args=[Invitation.issue(project, email, Role.EDITOR, by)[1]])


def test_new_user_chooses_password_but_no_address_or_role(client: Client, url: str) -> None:
    assert b"nia@example.org" in client.get(url).content
    forged = {"email": "other@example.org", "role": "manager", "is_superuser": "on"}
    assert client.post(url, {**NEWCOMER, **forged}).headers["Location"] == "/"
    nia = User.objects.get(email="nia@example.org")
    assert nia.check_password(PASSWORD)
    assert not nia.is_superuser
    assert Membership.objects.get(user=nia).role == Role.EDITOR
    assert client.session["_auth_user_id"] == str(nia.pk)


@pytest.mark.parametrize("change", [{"password": "short"}, {"name": ""}])
def test_bad_input_is_refused(client: Client, url: str, change: dict[str, str]) -> None:
    answer = client.post(url, {**NEWCOMER, **change})
    assert answer.status_code == 422
    assert b"error-summary" in answer.content
    assert not User.objects.filter(email="nia@example.org").exists()


def test_log_contains_no_working_link(url: str, caplog: pytest.LogCaptureFixture) -> None:
    for client in (Client(), Client(enforce_csrf_checks=True)):
        client.post(url, {**NEWCOMER, "password": "short"})
    assert caplog.text.count("/invitations/…/") == 2
    assert url not in caplog.text


def test_link_works_once(client: Client, url: str) -> None:
    client.post(url, NEWCOMER)
    client.logout()
    answer = client.get(url)
    assert answer.status_code == 404
    assert b"no longer works" in answer.content


def test_invitation_is_accepted_once(project: Project, mara: User, ed: User) -> None:
    invitation, _secret = Invitation.issue(project, "nia@example.org", Role.EDITOR, mara)
    invitation.accept(ed)
    with pytest.raises(InvitationUsed):
        invitation.accept(mara)


def test_expired_link_is_refused(client: Client, url: str) -> None:
    Invitation.objects.update(expires_at=timezone.now() - timedelta(minutes=1))
    assert client.post(url, NEWCOMER).status_code == 404


def test_user_with_account_signs_in_first(client: Client, project: Project, mara: User, otto: User) -> None:
    url = url_for(project, mara, otto.email)
    answer = client.get(url)
    assert answer.headers["Location"] == f"{reverse('account_login')}?next={url}"
    client.force_login(otto)
    assert b"Join the project" in client.get(url).content
    assert not project.memberships.filter(user=otto).exists()
    client.post(url)
    assert project.memberships.get(user=otto).role == Role.EDITOR


def test_link_sets_no_password_of_existing_account(
    client: Client, project: Project, mara: User, otto: User
) -> None:
    url = url_for(project, mara, otto.email)
    client.post(url, {"name": "Thief", "password": "stolen-long-password"})
    otto.refresh_from_db()
    assert otto.check_password(PASSWORD)


def test_link_is_for_the_invited_address_only(client: Client, url: str, otto: User) -> None:
    client.force_login(otto)
    assert client.get(url).status_code == 403
    assert client.post(url).status_code == 403
    assert Membership.objects.filter(user=otto).count() == 1


def test_invitation_raises_role_but_never_lowers_it(project: Project, mara: User, vera: User) -> None:
    for user in (mara, vera):
        Invitation.issue(project, user.email, Role.EDITOR, mara)[0].accept(user)
    assert Membership.objects.get(user=mara).role == Role.MANAGER
    assert Membership.objects.get(user=vera).role == Role.EDITOR
