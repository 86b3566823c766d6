"""Signing in, out, and back in after a forgotten password; sign-up is closed."""

from __future__ import annotations

import re

import pytest
from django.conf import settings
from django.core import mail
from django.core.cache import cache
from django.test import Client
from django.urls import NoReverseMatch, reverse

from dashboard.models import User
from tests.conftest import PASSWORD

URL = "/sign-in/"


@pytest.fixture(autouse=True)
def fresh_limits(db: None) -> None:
    """Tries are counted in the cache."""
    cache.clear()


def sign_in(client: Client, email: str, password: str, **extra: str) -> int:
    """The status of one try."""
    return client.post(URL, {"login": email, "password": password, **extra}).status_code


def test_it_opens_home(client: Client, mara: User) -> None:
    answer = client.post(URL, {"login": "Mara@Example.org", "password": PASSWORD})
    assert answer.headers["Location"] == reverse("home")
    assert client.session["_auth_user_id"] == str(mara.pk)


def test_it_starts_a_new_session_that_scripts_cannot_read(client: Client, mara: User) -> None:
    client.get(URL)
    client.session["visitor"] = "yes"
    client.session.save()
    before = client.session.session_key
    client.post(URL, {"login": mara.email, "password": PASSWORD})
    cookie = client.cookies[settings.SESSION_COOKIE_NAME]
    assert cookie.value != before
    assert cookie["httponly"]
    assert cookie["samesite"] == "Lax"


def test_it_goes_on_to_the_page_one_came_for(client: Client, mara: User) -> None:
    answer = client.post(URL, {"login": mara.email, "password": PASSWORD, "next": "/team/"})
    assert answer.headers["Location"] == "/team/"


def test_it_never_leads_to_another_site(client: Client, mara: User) -> None:
    answer = client.post(URL, {"login": mara.email, "password": PASSWORD, "next": "https://evil.example/"})
    assert answer.headers["Location"] == reverse("home")


def test_a_wrong_password_is_refused_beside_the_form(client: Client, mara: User) -> None:
    answer = client.post(URL, {"login": mara.email, "password": "wrong-password"})
    assert b"error-summary" in answer.content
    assert "_auth_user_id" not in client.session


def test_an_unknown_address_gets_the_same_answer(client: Client, mara: User) -> None:
    def summary(email: str) -> str:
        text = client.post(URL, {"login": email, "password": "wrong-password"}).content.decode()
        found = re.search(r"error-summary.*?</div>", text, re.DOTALL)
        assert found
        return found[0]

    assert summary(mara.email) == summary("unknown@example.org")


def test_the_sixth_try_is_refused_even_with_the_right_password(client: Client, mara: User) -> None:
    for _try in range(5):
        sign_in(client, mara.email, "wrong-password")
    sign_in(client, mara.email, PASSWORD)
    assert "_auth_user_id" not in client.session


def test_the_tries_stay_counted_while_the_cache_fills_up(client: Client, mara: User) -> None:
    for _try in range(5):
        sign_in(client, mara.email, "wrong-password")
    for number in range(400):
        cache.set(f"api:{number}", True, 3600)
    sign_in(client, mara.email, PASSWORD)
    assert "_auth_user_id" not in client.session


def test_a_forged_address_header_gains_no_further_tries(client: Client, mara: User) -> None:
    for number in range(5):
        client.post(
            URL,
            {"login": mara.email, "password": "wrong-password"},
            headers={"X-Forwarded-For": f"203.0.113.{number}"},
        )
    client.post(URL, {"login": mara.email, "password": PASSWORD}, headers={"X-Forwarded-For": "203.0.113.99"})
    assert "_auth_user_id" not in client.session


def test_a_retired_account_cannot_sign_in(client: Client, mara: User) -> None:
    User.objects.filter(pk=mara.pk).update(is_active=False)
    assert sign_in(client, mara.email, PASSWORD) in (200, 302)
    assert "_auth_user_id" not in client.session


def test_signing_out_needs_a_post(client: Client, mara: User) -> None:
    client.force_login(mara)
    assert client.get(reverse("account_logout")).status_code == 405
    assert client.post(reverse("account_logout")).headers["Location"] == URL
    assert "_auth_user_id" not in client.session


def test_there_is_no_sign_up(client: Client, mara: User) -> None:
    with pytest.raises(NoReverseMatch):
        reverse("account_signup")
    assert client.get("/accounts/signup/").status_code == 404


def test_the_administration_uses_the_same_sign_in(client: Client, mara: User) -> None:
    answer = client.get("/admin/", follow=True)
    assert answer.redirect_chain[-1][0].startswith(URL)
    answer = client.get("/admin/login/", follow=True)
    assert answer.redirect_chain[-1][0].startswith(URL)


def test_a_manager_who_is_no_superuser_has_no_administration(client: Client, mara: User) -> None:
    User.objects.filter(pk=mara.pk).update(is_staff=True)
    client.force_login(mara)
    assert client.get("/admin/").status_code != 200


def test_a_forgotten_password_is_reset_by_a_letter(client: Client, mara: User) -> None:
    client.post(reverse("account_reset_password"), {"email": mara.email})
    link = re.search(r"http://testserver(\S+)", str(mail.outbox[0].body))
    assert link
    form = client.get(link[1], follow=True)
    action = form.redirect_chain[-1][0]
    client.post(action, {"password1": "another-long-word", "password2": "another-long-word"})
    mara.refresh_from_db()
    assert mara.check_password("another-long-word")
    assert b"no longer works" in client.get(link[1], follow=True).content


def test_an_unknown_address_gets_no_letter_and_the_same_page(client: Client, mara: User) -> None:
    answer = client.post(reverse("account_reset_password"), {"email": "unknown@example.org"})
    assert answer.headers["Location"] == reverse("account_reset_password_done")
    assert mail.outbox == []


def test_the_password_is_changed_with_the_old_one(client: Client, mara: User) -> None:
    client.force_login(mara)
    new = {"password1": "another-long-word", "password2": "another-long-word"}
    assert client.post(reverse("account_change_password"), {"oldpassword": "wrong", **new}).status_code == 422
    client.post(reverse("account_change_password"), {"oldpassword": PASSWORD, **new})
    mara.refresh_from_db()
    assert mara.check_password("another-long-word")


def test_a_common_password_is_refused(client: Client, mara: User) -> None:
    client.force_login(mara)
    new = {"oldpassword": PASSWORD, "password1": "password1234", "password2": "password1234"}
    assert b"too common" in client.post(reverse("account_change_password"), new).content
