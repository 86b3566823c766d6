"""Errors below /v1: each is a typed exception of the `openai` package, whoever refuses."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import httpx2
import openai
import pytest
from django.db import OperationalError
from django.test import Client
from openai import OpenAI
from pytest_django import Settings

from dashboard.models import Project
from dashboard.models.accounts.access import ApiTokenQuerySet
from dashboard.models.accounts.project import ProjectQuerySet
from tests.openai_client import AsgiTransport, Connect

LARGE = ("rows.jsonl", b"x" * 2 * 1024**2)
KEYS = {"message", "type", "param", "code"}


def test_wrong_token_is_an_authentication_error(connect: Connect, project: Project) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        connect("gw_wrong").models.list()
    assert refused.value.type == "authentication_error"
    assert refused.value.response.headers["WWW-Authenticate"] == "Bearer"


def test_session_is_not_enough(client: Client, ed: Any) -> None:
    session = Client()
    session.force_login(ed)
    for path in ("models", "nothing", ""):
        answer = session.get(f"/v1/{path}")
        assert answer.status_code == 401
        assert set(answer.json()["error"]) == KEYS


@pytest.mark.parametrize("path", ["/nothing", "/models/", "/fine_tuning/jobs/1/nothing", "/"])
def test_unknown_address_is_not_found(client: OpenAI, path: str) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.get(path, cast_to=object)
    assert set(refused.value.body) == KEYS  # type: ignore[arg-type]


def test_unsupported_method_names_those_that_are(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.put("/models", cast_to=object)
    assert refused.value.status_code == 405
    assert refused.value.response.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert refused.value.type == "invalid_request_error"


def test_headers_of_organization_and_project_are_ignored(connect: Connect, token: str) -> None:
    assert list(connect(token, organization="org-x", project="proj-x").files.list()) == []


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000, b'{"model": "\\ud800"}'])
def test_unreadable_body_is_a_bad_request(client: OpenAI, body: bytes) -> None:
    with pytest.raises(openai.BadRequestError):
        client.post("/fine_tuning/jobs", cast_to=object, content=body)


def test_body_of_ten_megabytes_is_refused(connect: Connect, token: str, transport: AsgiTransport) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        connect(token, max_retries=2).fine_tuning.jobs.create(
            model="x" * 10 * 1024**2, training_file="file-1"
        )
    assert refused.value.status_code == 413
    assert set(refused.value.body) == KEYS  # type: ignore[arg-type]
    assert len(transport.requests) == 1


def test_large_upload_needs_a_token(connect: Connect, project: Project) -> None:
    with pytest.raises(openai.AuthenticationError):
        connect("gw_wrong").files.create(file=LARGE, purpose="fine-tune")


def test_upload_beyond_the_limit_is_refused(client: OpenAI, settings: Settings) -> None:
    settings.UPLOAD_LIMIT_BYTES = 1024**2
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=LARGE, purpose="fine-tune")
    assert refused.value.status_code == 413


def test_rate_limit_says_when_to_come_back(client: OpenAI, token: str, settings: Settings) -> None:
    settings.API_READS_PER_MINUTE = 2
    assert Client(headers={"Authorization": f"Bearer {token}"}).get("/api/v1/me").status_code == 200
    client.models.list()
    with pytest.raises(openai.RateLimitError) as refused:
        client.models.list()
    assert 1 <= int(refused.value.response.headers["Retry-After"]) <= 60


def test_client_tries_again_until_the_database_is_back(
    connect: Connect, token: str, transport: AsgiTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(
        OpenAI,
        "_calculate_retry_timeout",
        lambda _client, _left, _options, headers=None: waits.append(float(headers["retry-after"])) or 0,
    )
    away = Mock(side_effect=[OperationalError("away"), OperationalError("away"), [], []])
    monkeypatch.setattr(ProjectQuerySet, "visible_to", lambda *_args: away() or type(_args[0]).none(_args[0]))
    assert list(connect(token, max_retries=2).files.list()) == []
    assert (waits, len(transport.requests)) == ([10.0, 10.0], 3)


def test_token_that_cannot_be_checked_is_an_outage(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ApiTokenQuerySet, "authenticate", Mock(side_effect=OperationalError("away")))
    for call in (client.models.list, lambda: client.files.create(file=LARGE, purpose="fine-tune")):
        with pytest.raises(openai.InternalServerError) as failed:
            call()
        assert (failed.value.status_code, failed.value.code) == (503, "unavailable")
        assert failed.value.response.headers["Retry-After"] == "10"


def test_internal_error_hides_its_cause(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProjectQuerySet, "visible_to", Mock(side_effect=RuntimeError("secret detail")))
    with pytest.raises(openai.InternalServerError) as failed:
        client.files.list()
    assert (failed.value.type, failed.value.code) == ("server_error", "internal_error")
    assert "secret" not in failed.value.message


def test_page_keeps_its_own_errors(client: OpenAI, transport: AsgiTransport) -> None:
    answer = transport.handle_request(httpx2.Request("GET", "http://localhost/v10/nothing"))
    assert answer.status_code == 404
    assert b"error" not in answer.content[:10]
