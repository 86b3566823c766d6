"""Inviting somebody: the link is shown once and sent by e-mail."""

from __future__ import annotations

import re
from smtplib import SMTPException

import pytest
from django.core import mail
from django.test import Client
from pytest_django import Settings

from dashboard.models import Invitation, Role, User

URL = "/team/invitations/"


def link_in(text: str) -> str:
    """The invitation link of a page or a letter."""
    found = re.search(r"http://testserver(/invitations/[\w-]+/)", text)
    assert found
    return found[1]


def test_it_shows_the_link_once_and_sends_it(client: Client, mara: User) -> None:
    client.force_login(mara)
    answer = client.post(URL, {"email": "New@Example.org", "role": "editor"})
    assert answer.status_code == 201
    assert "no-store" in answer.headers["Cache-Control"]
    assert link_in(answer.content.decode()) == link_in(str(mail.outbox[0].body))
    assert mail.outbox[0].to == ["new@example.org"]
    assert Invitation.objects.get().role == Role.EDITOR
    assert b"http://testserver/invitations/" not in client.get("/team/").content


def test_only_the_digest_is_stored(client: Client, mara: User) -> None:
    client.force_login(mara)
    answer = client.post(URL, {"email": "new@example.org", "role": "viewer"})
    secret = link_in(answer.content.decode()).split("/")[2]
    assert secret not in str(Invitation.objects.values().get())


def test_a_mail_server_that_fails_is_said(
    client: Client, mara: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> int:
        raise SMTPException("no route")

    monkeypatch.setattr("dashboard.views.accounts.invitations.send_mail", broken)
    client.force_login(mara)
    answer = client.post(URL, {"email": "new@example.org", "role": "viewer"})
    assert b"could not be sent" in answer.content
    assert link_in(answer.content.decode())


def test_without_a_mail_server_the_link_is_on_the_page_alone(
    client: Client, mara: User, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.console.EmailBackend"
    client.force_login(mara)
    answer = client.post(URL, {"email": "new@example.org", "role": "viewer"})
    assert b"could not be sent" in answer.content
    assert link_in(answer.content.decode()) not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("email", "role"),
    [("", "viewer"), ("nobody", "viewer"), ("new@example.org", "owner"), ("mara@example.org", "viewer")],
)
def test_it_refuses_bad_input_and_keeps_it(client: Client, mara: User, email: str, role: str) -> None:
    client.force_login(mara)
    answer = client.post(URL, {"email": email, "role": role})
    assert answer.status_code == 422
    assert b"error-summary" in answer.content
    assert f'value="{email}"' in answer.content.decode() or not email
    assert not Invitation.objects.exists()


def test_a_subject_never_breaks_into_two_lines(client: Client, mara: User) -> None:
    from dashboard.models import Project

    Project.objects.update(name="Support\nBcc: x@example.org")
    client.force_login(mara)
    assert client.post(URL, {"email": "new@example.org", "role": "viewer"}).status_code == 201
    assert "\n" not in mail.outbox[0].subject


def test_it_refuses_an_editor(client: Client, ed: User) -> None:
    client.force_login(ed)
    assert client.post(URL, {"email": "new@example.org", "role": "viewer"}).status_code == 403
    assert not Invitation.objects.exists()


def test_a_manager_of_another_project_invites_only_there(client: Client, otto: User, mara: User) -> None:
    client.force_login(otto)
    client.post(URL, {"email": "new@example.org", "role": "viewer", "project": "1"})
    assert Invitation.objects.get().project.name == "Elsewhere"
