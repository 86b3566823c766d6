"""The gate before every route: sign-in, live regions, and users without a project."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import User
from tests.conftest import make_user


def test_set_up_comes_before_the_first_account(client: Client, db: None) -> None:
    assert client.get("/").headers["Location"] == reverse("set-up")


def test_anonymous_user_is_sent_to_sign_in_and_back(client: Client, mara: User) -> None:
    answer = client.get(reverse("team-index"))
    assert answer.status_code == 302
    assert answer.headers["Location"] == f"{reverse('account_login')}?next=/team/"


def test_sign_in_after_a_post_leads_home(client: Client, mara: User) -> None:
    answer = client.post(reverse("project-open"), {"project": 1})
    assert answer.headers["Location"] == f"{reverse('account_login')}?next=/"
    assert b"what you typed is still there" in client.get(answer.headers["Location"]).content


def test_address_that_only_takes_forms_answers_a_get_with_a_page(client: Client, mara: User) -> None:
    client.force_login(mara)
    answer = client.get(reverse("project-open"))
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"
    assert b"This address only receives forms" in answer.content


@pytest.mark.parametrize(("url", "path"), [("http://testserver/team/", "/team/"), ("http://[nowhere", "/")])
def test_live_region_sends_the_whole_page_to_sign_in(client: Client, mara: User, url: str, path: str) -> None:
    answer = client.get(reverse("home-progress"), headers={"HX-Request": "true", "HX-Current-URL": url})
    assert answer.headers["HX-Redirect"] == f"{reverse('account_login')}?next={path}"


@pytest.mark.parametrize("codec", ["base64", "idna"])
def test_declared_charset_is_ignored(client: Client, mara: User, codec: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="login"\r\n\r\nx\xff\r\n--b--\r\n'
    kind = f"multipart/form-data; boundary=b; charset={codec}"
    assert client.generic("POST", "/sign-in/", body, content_type=kind).status_code == 422


def test_health_route_is_public(client: Client, db: None) -> None:
    assert client.get(reverse("health")).content == b"ok"


def test_user_without_project_gets_403_with_reason(client: Client, mara: User) -> None:
    client.force_login(make_user("new@example.org"))
    answer = client.get(reverse("team-index"))
    assert answer.status_code == 403
    assert b"You are not a member of a project" in answer.content
    assert client.get(reverse("home")).status_code == 200
    assert client.get(reverse("account_change_password")).status_code == 200


def test_unknown_project_in_session_falls_back_to_the_first(client: Client, mara: User) -> None:
    client.force_login(mara)
    session = client.session
    session["project"] = 4711
    session.save()
    assert b"Support" in client.get(reverse("team-index")).content


def test_unknown_host_is_refused(client: Client, mara: User) -> None:
    assert client.get(reverse("account_login"), headers={"Host": "evil.example"}).status_code == 400
