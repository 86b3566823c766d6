"""No body is read past its limit: the ASGI wrapper that counts before Django spools to disk."""

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
    """Sends a body in pieces and remembers how much of it was taken, and what was answered."""

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
            await asyncio.Event().wait()  # the caller stays on the line for the answer
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
    """A finished request with this many bytes."""
    return Caller(path, size, {name.replace("_", "-"): value for name, value in headers.items()}).call()


@pytest.fixture
def session(transactional_db: None, client: Client, ed: User) -> str:
    """The cookie of a signed-in editor."""
    client.force_login(ed)
    return f"{settings.SESSION_COOKIE_NAME}={client.cookies[settings.SESSION_COOKIE_NAME].value}"


@pytest.fixture
def spooled() -> Iterator[None]:
    """Nothing may be left of a refused body."""
    before = set(settings.UPLOAD_DIR.iterdir())
    yield
    assert set(settings.UPLOAD_DIR.iterdir()) == before


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", ["/sign-in/", "/", "/team/", "/nowhere/", *UPLOAD_PATHS])
def test_an_anonymous_100_mb_post_is_refused_unread(path: str, spooled: None) -> None:
    caller = post(path, 100 * MB, content_length=str(100 * MB))
    assert caller.status in (401, 413)
    assert caller.taken <= MB


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", ["/sign-in/", *UPLOAD_PATHS])
def test_a_lying_content_length_is_cut_at_the_limit(path: str, spooled: None) -> None:
    caller = post(path, 100 * MB, content_length="10")
    assert caller.status in (401, 413)
    assert caller.taken <= MB + len(PIECE)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", ["/sign-in/", *UPLOAD_PATHS])
def test_a_chunked_body_is_cut_at_the_limit(path: str, spooled: None) -> None:
    caller = post(path, 100 * MB, transfer_encoding="chunked")
    assert caller.status in (401, 413)
    assert caller.taken <= MB + len(PIECE)


@pytest.mark.django_db(transaction=True)
def test_a_body_without_any_length_is_cut_at_the_limit(spooled: None) -> None:
    caller = post(UPLOAD_PATHS[0], 100 * MB)
    assert caller.status in (401, 413)
    assert caller.taken <= MB + len(PIECE)


def test_a_made_up_session_or_token_opens_nothing(transactional_db: None, spooled: None) -> None:
    cookie = f"{settings.SESSION_COOKIE_NAME}=made-up"
    size = {"content_length": str(100 * MB)}
    assert post(UPLOAD_PATHS[0], 100 * MB, cookie=cookie, **size).status == 401
    assert post(UPLOAD_PATHS[1], 100 * MB, authorization="Bearer gw_made-up", **size).status == 401


def test_the_session_of_a_retired_account_opens_nothing(session: str, ed: User, spooled: None) -> None:
    User.objects.filter(pk=ed.pk).update(is_active=False)
    assert post(UPLOAD_PATHS[0], 5 * MB, cookie=session, content_length=str(5 * MB)).status == 401


def test_a_signed_in_caller_is_held_to_the_ordinary_limit_elsewhere(session: str, spooled: None) -> None:
    caller = post("/team/invitations/", 5 * MB, cookie=session, content_length=str(5 * MB))
    assert caller.status == 413
    assert caller.taken == 0


def test_a_signed_in_caller_may_send_a_file(session: str) -> None:
    caller = post(UPLOAD_PATHS[0], 5 * MB, cookie=session, content_length=str(5 * MB))
    assert caller.taken == 5 * MB
    assert caller.status not in (401, 413)


def test_the_odd_cookie_of_another_product_hides_no_session(session: str) -> None:
    cookie = f'other={{"a": "b c"}}; {session}'
    assert post(UPLOAD_PATHS[0], 2 * MB, cookie=cookie, content_length=str(2 * MB)).status != 401


def test_a_file_past_the_configured_cap_is_refused(session: str, settings: Any, spooled: None) -> None:
    settings.UPLOAD_LIMIT_BYTES = 2 * MB
    caller = post(UPLOAD_PATHS[0], 5 * MB, cookie=session, content_length=str(5 * MB))
    assert caller.status == 413
    assert "2 MB" in json.loads(caller.body)


def test_the_api_names_the_refusal_in_its_own_words(transactional_db: None) -> None:
    caller = post("/api/v1/runs", 5 * MB, content_length=str(5 * MB))
    assert caller.status == 413
    assert json.loads(caller.body)["error"]["code"] == "too_large"


@pytest.mark.django_db(transaction=True)
def test_ten_thousand_parts_are_refused(client: Client) -> None:
    boundary = "b"
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n'
    body = part * 10_000 + f"--{boundary}--\r\n"
    answer = client.post("/sign-in/", body, content_type=f"multipart/form-data; boundary={boundary}")
    assert answer.status_code in (400, 413)
