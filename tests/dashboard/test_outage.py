"""Answers while the database is unreachable; the tests really disconnect it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from unittest.mock import Mock

import pytest
from django.contrib.sessions.backends.db import SessionStore
from django.db import OperationalError, connection
from django.test import Client
from django.urls import NoReverseMatch, get_resolver, reverse

from dashboard.api.jobs import jobs
from dashboard.charts.curves import Cursor
from dashboard.models import Project, TrainingRun, User
from dashboard.views.readers import Reader
from dashboard.views.training import live_run, metric_series
from tests.dashboard.routes import sign_in
from tests.servers import free_port

# Routes that read no rows.
WITHOUT_DATABASE = {"health", "api:openapi-json", "api:openapi-view"}


@pytest.fixture
def unreachable(transactional_db: None) -> Iterator[None]:
    """Let every query fail during the test."""
    before = dict(connection.settings_dict)
    connection.close()
    away = {"NAME": "/nonexistent/db.sqlite3"} if connection.vendor == "sqlite" else {"PORT": free_port()}
    connection.settings_dict.update(away)
    yield
    connection.close()
    connection.settings_dict.update(before)


@pytest.fixture
def signed_in(transactional_db: None, client: Client, vera: User) -> Client:
    client.force_login(vera)
    client.raise_request_exception = False
    return client


def addresses() -> list[str]:
    """Return every address whose arguments are numbers."""
    found = []
    resolver = get_resolver()
    for prefix, names in (
        ("", resolver.reverse_dict),
        ("api:", resolver.namespace_dict["api"][1].reverse_dict),
    ):
        for name in {name for name in names if isinstance(name, str)} - {"api-root", "missing"}:
            for arguments in ([], [1], [1, 1]):
                try:
                    address = reverse(f"{prefix}{name}", args=arguments)
                except NoReverseMatch:
                    continue
                if f"{prefix}{name}" not in WITHOUT_DATABASE:
                    found.append(address)
    return sorted(found)


def test_pages_and_api_answer_503_with_retry_after(signed_in: Client, token: str, unreachable: None) -> None:
    for address in addresses():
        is_call = address.startswith("/api/")
        headers = {"Authorization": f"Bearer {token}"} if is_call else {}
        answer = signed_in.get(address, headers=headers)
        assert answer.status_code == 503, f"{address}: {answer.status_code}"
        assert answer["Retry-After"] == "10"
        assert b"Traceback" not in answer.content
        if is_call:
            assert answer.json()["error"]["code"] == "unavailable"
        else:
            assert b"Back in a moment" in answer.content
    assert len(addresses()) > 40


def test_page_reloads_but_a_form_is_not_sent_again(signed_in: Client, unreachable: None) -> None:
    assert Client().get("/healthz/").status_code == 200
    assert b'http-equiv="refresh"' in signed_in.get("/").content
    sent = signed_in.post("/queue/1/cancel/")
    assert sent.status_code == 503
    assert b'http-equiv="refresh"' not in sent.content


def test_log_has_no_traceback(signed_in: Client, unreachable: None, caplog: pytest.LogCaptureFixture) -> None:
    signed_in.get("/")
    (record,) = [record for record in caplog.records if record.name == "django.request"]
    assert "Traceback" not in logging.Formatter().format(record)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(RuntimeError("broken"), 500, "internal_error"), (OperationalError("closed"), 503, "unavailable")],
)
def test_only_database_errors_are_an_outage(
    client: Client, token: str, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, code: str
) -> None:
    monkeypatch.setattr(jobs, "expected_starts", Mock(side_effect=error))
    client.raise_request_exception = False
    answer = client.get("/api/v1/jobs", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_event_stream_continues_after_an_outage(
    transactional_db: None, run: TrainingRun, vera: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, answers = live_run.latest_updates, iter([None, OperationalError("gone"), None])

    def look(*arguments: object) -> object:
        error = next(answers)
        if error:
            raise error
        return looks(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(live_run, "latest_updates", look)
    monkeypatch.setattr(live_run, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(live_run, "OUTAGE_SECONDS", 0.0)
    reader = Reader.of(vera, SessionStore(sign_in(vera)), run.project_id)

    async def listen() -> list[str]:
        stream = metric_series.events(reader, run.pk, Cursor.parse(""))
        return [await anext(stream) for _time in range(4)]

    events = asyncio.run(listen())
    assert "event: progress" in events[1]
    assert events[2].startswith("event: away\nid: ")
    assert "event: progress" in events[3], "the page removes its notice"


def test_silent_database_server_is_detected_within_seconds(signed_in: Client, project: Project) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("A file cannot be silent.")
    from tests.proxy import Proxy

    before = dict(connection.settings_dict)
    with Proxy(f"{before['HOST']}:{before['PORT']}") as proxy:
        connection.close()
        connection.settings_dict.update(HOST="127.0.0.1", PORT=proxy.port)
        assert signed_in.get("/").status_code == 200
        proxy.black_hole()
        connection.close()
        began = time.monotonic()
        answer = signed_in.get("/")
        took = time.monotonic() - began
        connection.close()
        connection.settings_dict.update(before)
    assert answer.status_code == 503
    assert took < 10


@pytest.fixture
def locked(transactional_db: None) -> Iterator[None]:
    """Hold SQLite's write lock in another connection, with a short timeout for everyone else."""
    if connection.vendor != "sqlite":
        pytest.skip("Only SQLite has one writer at a time.")
    options = connection.settings_dict["OPTIONS"]
    connection.close()
    connection.settings_dict["OPTIONS"] = {**options, "timeout": 0.02}
    with contextlib.closing(sqlite3.connect(connection.settings_dict["NAME"])) as writer:
        writer.execute("BEGIN IMMEDIATE")
        yield
    connection.close()
    connection.settings_dict["OPTIONS"] = options


def test_reads_do_not_wait_for_the_write_lock(signed_in: Client, token: str, locked: None) -> None:
    refused = []
    for address in addresses():
        headers = {"Authorization": f"Bearer {token}"} if address.startswith("/api/") else {}
        if signed_in.get(address, headers=headers).status_code == 503:
            refused.append(address)
    assert refused == []
    assert signed_in.post(reverse("account_logout")).status_code == 503, "that writes"
