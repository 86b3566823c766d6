"""Taking an open invitation back."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Invitation, Project, Role, User


@pytest.fixture
def invitation(project: Project, mara: User) -> Invitation:
    """An open invitation to the project."""
    return Invitation.issue(project, "new@example.org", Role.EDITOR, mara)[0]


def url_of(invitation: Invitation) -> str:
    """Where it is taken back."""
    return reverse("invitation-revoke", args=[invitation.pk])


def test_its_link_stops_working(client: Client, mara: User, project: Project) -> None:
    invitation, secret = Invitation.issue(project, "new@example.org", Role.EDITOR, mara)
    client.force_login(mara)
    client.post(url_of(invitation))
    client.logout()
    assert client.get(reverse("invitation-accept", args=[secret])).status_code == 404


def test_a_used_one_is_left_alone(client: Client, mara: User, ed: User, invitation: Invitation) -> None:
    invitation.accept(ed)
    client.force_login(mara)
    assert b"has already joined" in client.post(url_of(invitation), follow=True).content
    assert Invitation.objects.exists()


def test_it_refuses_an_editor(client: Client, ed: User, invitation: Invitation) -> None:
    client.force_login(ed)
    assert client.post(url_of(invitation)).status_code == 403


def test_it_hides_the_invitation_from_an_outsider(client: Client, otto: User, invitation: Invitation) -> None:
    client.force_login(otto)
    assert client.post(url_of(invitation)).status_code == 404
    assert Invitation.objects.exists()
