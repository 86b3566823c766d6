"""The gate in front of every route: strangers, live regions, programs, and people without a project."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.gate import bearer_token
from dashboard.models import ApiToken, Project, User
from tests.conftest import make_user


@pytest.fixture
def nobody(mara: User) -> User:
    """Somebody with an account and no project."""
    return make_user("nobody@example.org")


def test_the_first_visitor_is_sent_to_the_set_up(client: Client, db: None) -> None:
    assert client.get("/").headers["Location"] == reverse("set-up")


def test_a_stranger_is_sent_to_the_sign_in_and_back(client: Client, mara: User) -> None:
    answer = client.get(reverse("team-index"))
    assert answer.status_code == 302
    assert answer.headers["Location"] == f"{reverse('account_login')}?next=/team/"


def test_after_a_form_that_came_too_late_one_starts_at_home(client: Client, mara: User) -> None:
    answer = client.post(reverse("project-open"), {"project": 1})
    assert answer.headers["Location"] == f"{reverse('account_login')}?next=/"


def test_a_live_region_takes_the_whole_page_to_the_sign_in(client: Client, mara: User) -> None:
    headers = {"HX-Request": "true", "HX-Current-URL": "http://testserver/team/"}
    answer = client.get(reverse("home-progress"), headers=headers)
    assert answer.headers["HX-Redirect"] == f"{reverse('account_login')}?next=/team/"


def test_a_live_region_on_no_page_at_all_leads_to_the_sign_in(client: Client, mara: User) -> None:
    headers = {"HX-Request": "true", "HX-Current-URL": "http://[nowhere"}
    answer = client.get(reverse("home-progress"), headers=headers)
    assert answer.headers["HX-Redirect"] == f"{reverse('account_login')}?next=/"


@pytest.mark.parametrize("codec", ["base64", "idna", "rot13"])
def test_a_form_is_read_as_utf_8_whatever_it_calls_itself(client: Client, mara: User, codec: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="login"\r\n\r\nx\xff\r\n--b--\r\n'
    kind = f"multipart/form-data; boundary=b; charset={codec}"
    assert client.generic("POST", "/sign-in/", body, content_type=kind).status_code == 422


def test_health_answers_everybody(client: Client, db: None) -> None:
    assert client.get(reverse("health")).content == b"ok"


def test_a_call_without_a_token_is_told_what_to_send(client: Client, mara: User) -> None:
    client.force_login(mara)
    answer = client.get("/api/v1/runs")
    assert answer.status_code in (401, 404)
    if answer.status_code == 401:
        assert answer.json()["error"]["code"] == "unauthorized"


def test_a_revoked_token_opens_nothing(mara: User, project: Project) -> None:
    token, secret = ApiToken.issue(project, mara, "once")
    assert bearer_token(f"Bearer {secret}") == token
    token.revoke()
    assert bearer_token(f"Bearer {secret}") is None


def test_a_header_of_another_kind_is_no_token(mara: User, project: Project) -> None:
    secret = ApiToken.issue(project, mara, "once")[1]
    assert bearer_token(f"Basic {secret}") is None
    assert bearer_token("Bearer") is None
    assert bearer_token("") is None


def test_a_person_without_a_project_reads_what_is_missing(client: Client, nobody: User) -> None:
    client.force_login(nobody)
    answer = client.get(reverse("team-index"))
    assert answer.status_code == 403
    assert b"You are not a member of a project" in answer.content
    assert client.get(reverse("home")).status_code == 200
    assert client.get(reverse("account_change_password")).status_code == 200


def test_a_superuser_sees_no_foreign_project(client: Client, mara: User) -> None:
    client.force_login(User.objects.create_superuser("root@example.org", "correct-horse-battery"))
    assert client.get(reverse("team-index")).status_code == 403
    assert client.get(reverse("project-create")).status_code == 200


def test_a_forgotten_project_choice_falls_back_to_the_first(client: Client, mara: User) -> None:
    client.force_login(mara)
    session = client.session
    session["project"] = 4711
    session.save()
    assert b"Support" in client.get(reverse("team-index")).content


def test_another_host_name_is_refused(client: Client, mara: User) -> None:
    assert client.get(reverse("health"), headers={"Host": "evil.example"}).status_code in (200, 400)
    assert client.get(reverse("account_login"), headers={"Host": "evil.example"}).status_code == 400
