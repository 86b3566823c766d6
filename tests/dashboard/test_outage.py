"""What people and programs are told while the database is away; here it really is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator

import pytest
from django.db import OperationalError, connection
from django.test import Client
from django.urls import NoReverseMatch, get_resolver, reverse

from dashboard.charts.curves import Cursor
from dashboard.models import Project, TrainingRun, User
from dashboard.views.training import metric_series
from tests.servers import free_port

# Answered without any row.
UNTOUCHED = {"health", "api:openapi-json", "api:openapi-view"}


@pytest.fixture
def gone(transactional_db: None) -> Iterator[None]:
    """Every query fails from here on; what was there before is there again afterwards."""
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
    """Every address that can be built from numbers."""
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
                if f"{prefix}{name}" not in UNTOUCHED:
                    found.append(address)
    return sorted(found)


def test_every_page_and_call_says_503_and_when_to_come_back(
    signed_in: Client, token: str, gone: None
) -> None:
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


def test_a_stranger_is_told_as_well_and_the_launcher_is_not(client: Client, gone: None) -> None:
    client.raise_request_exception = False
    assert client.get("/").status_code == 503
    assert client.get("/healthz/").status_code == 200


def test_a_page_tries_again_by_itself_but_never_sends_a_form_again(signed_in: Client, gone: None) -> None:
    assert b'http-equiv="refresh"' in signed_in.get("/").content
    sent = signed_in.post("/queue/1/cancel/")
    assert sent.status_code == 503
    assert b'http-equiv="refresh"' not in sent.content


def test_the_log_gets_a_line_and_no_traceback(
    signed_in: Client, gone: None, caplog: pytest.LogCaptureFixture
) -> None:
    signed_in.get("/")
    (record,) = [record for record in caplog.records if record.name == "django.request"]
    assert "Traceback" not in logging.Formatter().format(record)


def test_another_fault_is_still_a_fault(
    client: Client, ed: User, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_arguments: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("dashboard.gate.current_project", break_down)
    client.raise_request_exception = False
    client.force_login(ed)
    assert client.get("/").status_code == 500
    call = client.get("/api/v1/runs", headers={"Authorization": f"Bearer {token}"})
    assert (call.status_code, call.json()["error"]["code"]) == (500, "internal_error")


def test_a_call_that_is_interrupted_by_the_outage_says_so(
    client: Client, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_arguments: object) -> None:
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr("dashboard.api.jobs.jobs.with_subjects", lose)
    answer = client.get("/api/v1/jobs", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert answer["Retry-After"] == "10"


def test_a_live_page_waits_for_the_database(
    transactional_db: None, run: TrainingRun, vera: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, answers = metric_series.latest_update, iter([None, OperationalError("gone"), None])

    def look(*arguments: object) -> object:
        error = next(answers)
        if error:
            raise error
        return looks(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(metric_series, "latest_update", look)
    monkeypatch.setattr(metric_series, "OUTAGE_SECONDS", 0.0)

    async def listen() -> list[str]:
        told = metric_series.events(vera, run.pk, Cursor.parse(""))
        return [await anext(told) for _time in range(4)]

    said = asyncio.run(listen())
    assert "event: progress" in said[1]
    assert said[2].startswith("event: away\nid: ")
    assert "event: progress" in said[3], "else the page would keep its notice"


def test_it_answers_soon_while_a_server_is_silent(signed_in: Client, project: Project) -> None:
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
    """Another process is in the middle of a write and goes no further. Nobody waits long for it here."""
    if connection.vendor != "sqlite":
        pytest.skip("Only SQLite has one writer at a time.")
    options = connection.settings_dict["OPTIONS"]
    connection.close()
    connection.settings_dict["OPTIONS"] = {**options, "timeout": 0.2}
    with contextlib.closing(sqlite3.connect(connection.settings_dict["NAME"])) as writer:
        writer.execute("BEGIN IMMEDIATE")
        yield
    connection.close()
    connection.settings_dict["OPTIONS"] = options


def test_whoever_only_reads_notices_no_lock(signed_in: Client, token: str, locked: None) -> None:
    refused = []
    for address in addresses():
        headers = {"Authorization": f"Bearer {token}"} if address.startswith("/api/") else {}
        if signed_in.get(address, headers=headers).status_code == 503:
            refused.append(address)
    assert refused == []
    assert signed_in.post(reverse("account_logout")).status_code == 503, "that writes"
