"""Redirects to an address that the request names: never to another site, however the address is written."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import pytest
from django.core.cache import cache
from django.test import Client
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st

from dashboard.gate import is_local
from dashboard.models import User
from tests.conftest import PASSWORD

FOREIGN = [
    "https://evil.example/",
    "https:evil.example",
    "http:///evil.example",
    "//evil.example",
    "///evil.example",
    "//testserver@evil.example/",
    "https://testserver@evil.example/",
    "https://testserver.evil.example/",
    "\\\\evil.example",
    "/\\evil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    "\t//evil.example",
    "/team//evil.example",
    "%2f%2fevil.example",
    "/%2fevil.example",
    "/%252fevil.example",
    "/%25252fevil.example",
    "/%5cevil.example",
    "/%255cevil.example",
    "/%09/evil.example",
    "/%00/evil.example",
    "evil.example",
    "javascript:alert('evil')",
    "/" + "%25" * 700 + "evil.example",
]
SENT = ["https://evil.example/", "%2f%2fevil.example", "/%252fevil.example", "/\\evil.example"]
OWN = ["/team/", "/", "/team/?page=2", "/compare/?query=a%5Cb%0Ac//d", "/team/#members", "/datasets/%C3%A9/"]


@pytest.fixture(autouse=True)
def fresh_limits(db: None) -> None:
    """Clear the cache, which counts failed tries."""
    cache.clear()


@pytest.mark.parametrize("address", FOREIGN)
def test_foreign_address_is_not_local(address: str) -> None:
    assert not is_local(address)


@pytest.mark.parametrize("address", OWN)
def test_address_of_a_page_is_local(address: str) -> None:
    assert is_local(address)


def test_sign_in_leads_back(client: Client, mara: User) -> None:
    values = {"login": mara.email, "password": PASSWORD, "next": "/team/?page=2"}
    assert client.post("/sign-in/", values).headers["Location"] == "/team/?page=2"


@pytest.mark.parametrize("address", SENT)
def test_sign_in_leads_to_no_other_site(client: Client, mara: User, address: str) -> None:
    values = {"login": mara.email, "password": PASSWORD, "next": address}
    assert client.post("/sign-in/", values).headers["Location"] == "/"


@pytest.mark.parametrize("address", SENT)
@pytest.mark.parametrize(
    "route", ["account_login", "account_logout", "account_change_password", "admin:login", "admin:logout"]
)
def test_no_page_leads_to_another_site(client: Client, mara: User, address: str, route: str) -> None:
    User.objects.update(is_superuser=True, is_staff=True)
    client.force_login(mara)
    new = {"oldpassword": PASSWORD, "password1": "another-long-word", "password2": "another-long-word"}
    old = {"login": mara.email, "username": mara.email, "password": PASSWORD}
    answer = client.post(reverse(route), {**old, **new, "next": address})
    assert answer.status_code in (200, 302)
    assert "evil" not in answer.headers.get("Location", "")


@given(st.text(alphabet="/\\%25fcC09:@.?#a\t\n\x00é", max_size=40))
def test_local_addresses_have_no_host(address: str) -> None:
    if is_local(address):
        for _round in range(20):
            path = urlsplit(address).path
            assert path[0] == "/" and path[1:2] not in ("/", "\\")  # noqa: PT018
            assert urlsplit(path).netloc == urlsplit(path).scheme == ""
            address = unquote(path)
