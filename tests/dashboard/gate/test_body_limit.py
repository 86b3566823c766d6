"""Limits of request bodies: the ASGI wrapper that counts bytes before Django spools them to disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

from dashboard.asgi import application
from dashboard.gate import UPLOAD_PATHS
from dashboard.models import User

PIECE = b"x" * 65536
MB = 1024**2


class Caller:
    """Sends a body in pieces and records how much of it was read, and the answer."""

    def __init__(self, path: str, size: int, headers: dict[str, str]) -> None:
        self.left, self.taken = size, 0
        self.status, self.body = 0, b""
        names = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()]
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": names,
            "client": ("127.0.0.1", 1),
            "server": ("localhost", 80),
        }

    async def receive(self) -> dict[str, Any]:
        if self.left <= 0:
            await asyncio.Event().wait()  # the client waits for the answer
        piece = PIECE[: self.left]
        self.left -= len(piece)
        self.taken += len(piece)
        return {"type": "http.request", "body": piece, "more_body": self.left > 0}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.body += message.get("body", b"")

    def call(self) -> Caller:
        asyncio.run(asyncio.wait_for(application(self.scope, self.receive, self.send), 60))
        return self


def post(path: str, size: int, **headers: str) -> Caller:
    """Send a request with this many bytes."""
    return Caller(path, size, {name.replace("_", "-"): value for name, value in headers.items()}).call()


@pytest.fixture
def session(transactional_db: None, client: Client, ed: User) -> str:
    """Return the session cookie of a signed-in editor."""
    client.force_login(ed)
    return f"{settings.SESSION_COOKIE_NAME}={client.cookies[settings.SESSION_COOKIE_NAME].value}"


@pytest.fixture
def spooled() -> Iterator[None]:
    """Check that nothing is left of a refused body."""
    before = set(settings.UPLOAD_DIR.iterdir())
    yield
    assert set(settings.UPLOAD_DIR.iterdir()) == before


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", ["/sign-in/", *UPLOAD_PATHS])
@pytest.mark.parametrize(
    "headers",
    [{"content_length": str(100 * MB)}, {"content_length": "10"}, {"transfer_encoding": "chunked"}, {}],
    ids=["true length", "false length", "chunked", "no length"],
)
def test_large_anonymous_body_is_cut_at_the_limit(path: str, headers: dict[str, str], spooled: None) -> None:
    caller = post(path, 100 * MB, **headers)
    assert caller.status in (401, 413)
    assert caller.taken <= MB + len(PIECE)


def test_invalid_session_or_token_is_refused(transactional_db: None, spooled: None) -> None:
    cookie = f"{settings.SESSION_COOKIE_NAME}=made-up"
    size = {"content_length": str(100 * MB)}
    assert post(UPLOAD_PATHS[0], 100 * MB, cookie=cookie, **size).status == 401
    assert post(UPLOAD_PATHS[1], 100 * MB, authorization="Bearer gw_made-up", **size).status == 401


def test_session_of_inactive_account_is_refused(session: str, ed: User, spooled: None) -> None:
    User.objects.filter(pk=ed.pk).update(is_active=False)
    assert post(UPLOAD_PATHS[0], 5 * MB, cookie=session, content_length=str(5 * MB)).status == 401


def test_other_routes_keep_the_ordinary_limit(session: str, spooled: None) -> None:
    caller = post("/team/invitations/", 5 * MB, cookie=session, content_length=str(5 * MB))
    assert caller.status == 413
    assert caller.taken == 0


def test_signed_in_user_may_upload(session: str) -> None:
    caller = post(UPLOAD_PATHS[0], 5 * MB, cookie=session, content_length=str(5 * MB))
    assert caller.taken == 5 * MB
    assert caller.status not in (401, 413)


def test_malformed_foreign_cookie_does_not_hide_session(session: str) -> None:
    cookie = f'other={{"a": "b c"}}; {session}'
    assert post(UPLOAD_PATHS[0], 2 * MB, cookie=cookie, content_length=str(2 * MB)).status != 401


def test_file_above_upload_limit_is_refused(session: str, settings: Any, spooled: None) -> None:
    settings.UPLOAD_LIMIT_BYTES = 2 * MB
    caller = post(UPLOAD_PATHS[0], 5 * MB, cookie=session, content_length=str(5 * MB))
    assert caller.status == 413
    assert "2 MB" in json.loads(caller.body)


def test_api_refusal_has_the_error_format(transactional_db: None) -> None:
    caller = post("/api/v1/runs", 5 * MB, content_length=str(5 * MB))
    assert caller.status == 413
    assert json.loads(caller.body)["error"]["code"] == "too_large"


@pytest.mark.django_db(transaction=True)
def test_too_many_multipart_parts_are_refused(client: Client) -> None:
    boundary = "b"
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n'
    body = part * 10_000 + f"--{boundary}--\r\n"
    answer = client.post("/sign-in/", body, content_type=f"multipart/form-data; boundary={boundary}")
    assert answer.status_code in (400, 413)
