"""Sign-in, sign-out, and passwords."""

from __future__ import annotations

import re

import pytest
from django.conf import settings
from django.core import mail
from django.core.cache import cache
from django.test import Client
from django.urls import reverse

from dashboard.models import User
from tests.conftest import PASSWORD

URL = "/sign-in/"


@pytest.fixture(autouse=True)
def fresh_limits(db: None) -> None:
    """Clear the cache, which counts failed tries."""
    cache.clear()


def sign_in(client: Client, email: str, password: str, **headers: str) -> None:
    client.post(URL, {"login": email, "password": password}, headers=headers)


def test_fields_are_labelled_as_in_other_forms_and_have_no_placeholder(client: Client, mara: User) -> None:
    text = client.get(URL).content.decode()
    assert re.findall(r"<label[^>]*>([^<]*)</label>", text) == ["Email address", "Password"]
    assert "placeholder" not in text


def test_sign_in_opens_home(client: Client, mara: User) -> None:
    answer = client.post(URL, {"login": "Mara@Example.org", "password": PASSWORD})
    assert answer.headers["Location"] == reverse("home")
    assert client.session["_auth_user_id"] == str(mara.pk)


def test_sign_in_starts_new_session_hidden_from_scripts(client: Client, mara: User) -> None:
    client.get(URL)
    client.session["visitor"] = "yes"
    client.session.save()
    before = client.session.session_key
    client.post(URL, {"login": mara.email, "password": PASSWORD})
    cookie = client.cookies[settings.SESSION_COOKIE_NAME]
    assert cookie.value != before
    assert cookie["httponly"]
    assert cookie["samesite"] == "Lax"


def test_wrong_password_and_unknown_address_get_the_same_answer(client: Client, mara: User) -> None:
    def summary(email: str) -> str:
        text = client.post(URL, {"login": email, "password": "wrong-password"}).content.decode()
        found = re.search(r"error-summary.*?</div>", text, re.DOTALL)
        assert found
        return found[0]

    assert summary(mara.email) == summary("unknown@example.org")
    assert "_auth_user_id" not in client.session


def test_sixth_try_is_refused(client: Client, mara: User) -> None:
    for _try in range(5):
        sign_in(client, mara.email, "wrong-password")
    for number in range(400):
        cache.set(f"api:{number}", True, 3600)  # a cache with Django's default size would drop the tries
    sign_in(client, mara.email, PASSWORD)
    assert "_auth_user_id" not in client.session


def test_forged_address_header_adds_no_tries(client: Client, mara: User) -> None:
    for number in range(5):
        sign_in(client, mara.email, "wrong-password", **{"X-Forwarded-For": f"203.0.113.{number}"})
    sign_in(client, mara.email, PASSWORD, **{"X-Forwarded-For": "203.0.113.99"})
    assert "_auth_user_id" not in client.session


def test_inactive_account_cannot_sign_in(client: Client, mara: User) -> None:
    User.objects.filter(pk=mara.pk).update(is_active=False)
    sign_in(client, mara.email, PASSWORD)
    assert "_auth_user_id" not in client.session


def test_sign_out_requires_post(client: Client, mara: User) -> None:
    client.force_login(mara)
    assert client.get(reverse("account_logout")).status_code == 405
    assert client.post(reverse("account_logout")).headers["Location"] == URL
    assert "_auth_user_id" not in client.session


def test_admin_uses_the_same_sign_in_page(client: Client, mara: User) -> None:
    answer = client.get("/admin/login/", follow=True)
    assert answer.redirect_chain[-1][0].startswith(URL)


def test_staff_without_superuser_cannot_open_admin(client: Client, mara: User) -> None:
    User.objects.filter(pk=mara.pk).update(is_staff=True)
    client.force_login(mara)
    assert client.get("/admin/").status_code != 200


def test_password_reset_by_email(client: Client, mara: User) -> None:
    client.post(reverse("account_reset_password"), {"email": mara.email})
    link = re.search(r"http://testserver(\S+)", str(mail.outbox[0].body))
    assert link
    form = client.get(link[1], follow=True)
    action = form.redirect_chain[-1][0]
    client.post(action, {"password1": "another-long-word", "password2": "another-long-word"})
    mara.refresh_from_db()
    assert mara.check_password("another-long-word")
    assert b"no longer works" in client.get(link[1], follow=True).content


def test_password_reset_sends_nothing_to_unknown_address(client: Client, mara: User) -> None:
    answer = client.post(reverse("account_reset_password"), {"email": "unknown@example.org"})
    assert answer.headers["Location"] == reverse("account_reset_password_done")
    assert mail.outbox == []


def test_password_change_requires_old_password(client: Client, mara: User) -> None:
    client.force_login(mara)
    new = {"password1": "another-long-word", "password2": "another-long-word"}
    assert client.post(reverse("account_change_password"), {"oldpassword": "wrong", **new}).status_code == 422
    client.post(reverse("account_change_password"), {"oldpassword": PASSWORD, **new})
    mara.refresh_from_db()
    assert mara.check_password("another-long-word")
