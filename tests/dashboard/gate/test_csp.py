"""The Content-Security-Policy of every answer; templates and scripts stay within it."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import Mock

import pytest
from django.conf import settings
from django.test import Client

from dashboard.models import User

TEMPLATES = sorted((settings.BASE_DIR / "templates").rglob("*.html"))
FORBIDDEN = {
    "an inline style": re.compile(r"\sstyle\s*=", re.IGNORECASE),
    "a style element": re.compile(r"<style", re.IGNORECASE),
    "an event attribute": re.compile(r"\son[a-z]+\s*=\s*[\"']", re.IGNORECASE),
    "an inline script": re.compile(r"<script(?![^>]*\ssrc=)", re.IGNORECASE),
    "a javascript address": re.compile(r"javascript:", re.IGNORECASE),
    "an htmx script": re.compile(r"hx-on|\bjs:|hx-vars", re.IGNORECASE),
    "an unescaped value": re.compile(r"\|\s*safe\b|autoescape off", re.IGNORECASE),
}
# Django's own help texts are HTML without user input.
ALLOWED = {("django/forms/field.html", "an unescaped value")}


def policy_of(client: Client, path: str, **headers: str) -> dict[str, str]:
    """Return directive -> sources of an answer."""
    text = client.get(path, headers=headers or None).headers["Content-Security-Policy"]
    return dict(part.strip().partition(" ")[::2] for part in text.split(";") if part.strip())


@pytest.mark.parametrize("path", ["/", "/sign-in/", "/nowhere/", "/admin/", "/healthz/", "/api/v1/docs"])
def test_pages_and_errors_have_the_policy(client: Client, mara: User, path: str) -> None:
    User.objects.filter(pk=mara.pk).update(is_superuser=True, is_staff=True)
    client.force_login(mara)
    policy = policy_of(client, path)
    assert policy["default-src"] == "'none'"
    assert policy["script-src"].startswith("'self'")
    assert policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in str(policy)


def test_refusals_have_the_policy(client: Client, mara: User) -> None:
    assert policy_of(client, "/team/")["default-src"] == "'none'"
    assert policy_of(client, "/sign-in/", Host="evil.example")["default-src"] == "'none'"


def test_internal_errors_have_the_policy(client: Client, mara: User, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Mock(side_effect=RuntimeError("a secret detail"))
    monkeypatch.setattr("dashboard.views.accounts.team.render", failing)
    client.force_login(mara)
    client.raise_request_exception = False
    answer = client.get("/team/")
    assert answer.status_code == 500
    assert b"Something went wrong" in answer.content
    assert b"a secret detail" not in answer.content
    assert "'none'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_templates_stay_within_the_policy(what: str) -> None:
    faults = [
        str(path.relative_to(settings.BASE_DIR / "templates"))
        for path in TEMPLATES
        if FORBIDDEN[what].search(path.read_text())
    ]
    assert [name for name in faults if (name, what) not in ALLOWED] == []


def test_scripts_write_no_html_from_text() -> None:
    scripts: list[Path] = sorted((settings.BASE_DIR / "static" / "js").rglob("*.js"))
    assert scripts
    wrong = re.compile(
        r"innerHTML\s*[+]?=|outerHTML\s*=|insertAdjacentHTML|document\.write|\beval\(|new Function"
    )
    assert [path.name for path in scripts if wrong.search(path.read_text())] == []
