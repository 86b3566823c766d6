"""Invitations on the team page: the link is shown once and sent by email; a revoked link stops working."""

from __future__ import annotations

import re
from smtplib import SMTPException
from unittest.mock import Mock

import pytest
from django.core import mail
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from dashboard.models import Invitation, Project, Role, User

URL = "/team/invitations/"
NEW = {"email": "new@example.org", "role": "viewer"}


@pytest.fixture
def manager(client: Client, mara: User) -> Client:
    client.force_login(mara)
    return client


def link_in(text: str) -> str:
    """Return the path of the invitation link in a page or an email."""
    found = re.search(r"http://testserver(/invitations/[\w-]+/)", text)
    assert found
    return found[1]


def test_link_is_shown_once_and_sent(manager: Client) -> None:
    answer = manager.post(URL, {"email": "New@Example.org", "role": "editor"})
    assert answer.status_code == 201
    assert "no-store" in answer.headers["Cache-Control"]
    link = link_in(answer.content.decode())
    assert link == link_in(str(mail.outbox[0].body))
    assert mail.outbox[0].to == ["new@example.org"]
    assert Invitation.objects.get().role == Role.EDITOR
    assert link.split("/")[2] not in str(Invitation.objects.values().get()), "only the digest is stored"
    assert b"http://testserver/invitations/" not in manager.get("/team/").content


def test_failed_mail_is_reported(manager: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Mock(side_effect=SMTPException("no route"))
    monkeypatch.setattr("dashboard.views.accounts.invitations.send_mail", failing)
    answer = manager.post(URL, NEW)
    assert b"no email was sent" in answer.content
    assert link_in(answer.content.decode())


def test_console_backend_prints_no_link(
    manager: Client, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.console.EmailBackend"
    answer = manager.post(URL, NEW)
    assert b"no email was sent" in answer.content
    assert link_in(answer.content.decode()) not in "".join(capsys.readouterr())


@pytest.mark.parametrize("change", [{"email": "nobody"}, {"role": "owner"}, {"email": "mara@example.org"}])
def test_bad_input_is_refused_and_kept(manager: Client, change: dict[str, str]) -> None:
    values = {**NEW, **change}
    answer = manager.post(URL, values)
    assert answer.status_code == 422
    assert b"error-summary" in answer.content
    assert f'value="{values["email"]}"' in answer.content.decode()
    assert not Invitation.objects.exists()


def test_subject_is_one_line(manager: Client) -> None:
    Project.objects.update(name="Support\nBcc: x@example.org")
    assert manager.post(URL, NEW).status_code == 201
    assert "\n" not in mail.outbox[0].subject


def test_invitation_is_for_the_open_project(client: Client, otto: User, mara: User) -> None:
    client.force_login(otto)
    client.post(URL, {**NEW, "project": "1"})
    assert Invitation.objects.get().project.name == "Elsewhere"


def test_revoked_link_stops_working(manager: Client, mara: User, project: Project) -> None:
    invitation, secret = Invitation.issue(project, "new@example.org", Role.EDITOR, mara)
    manager.post(reverse("invitation-revoke", args=[invitation.pk]))
    assert Invitation.objects.with_secret(secret) is None


def test_accepted_invitation_cannot_be_revoked(
    manager: Client, mara: User, ed: User, project: Project
) -> None:
    invitation, _secret = Invitation.issue(project, "new@example.org", Role.EDITOR, mara)
    invitation.accept(ed)
    manager.post(reverse("invitation-revoke", args=[invitation.pk]))
    assert Invitation.objects.exists()
