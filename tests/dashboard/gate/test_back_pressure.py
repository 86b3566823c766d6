"""Back pressure: few requests work at a time, some wait, the rest is refused. Compression of what is sent."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.test import Client
from django.urls import reverse

from dashboard import back_pressure, password_hashing
from dashboard.back_pressure import BackPressure, release_turn
from dashboard.models import User

Application = Callable[[Any, Any, Any], Awaitable[None]]


class Server:
    """An application that holds each request until `gate` opens, and counts those at work."""

    def __init__(self, limit: int, *, is_long: bool = False) -> None:
        self.application = BackPressure(self.work, limit)
        self.gate, self.is_long = asyncio.Event(), is_long
        self.working = self.most = 0

    async def work(self, _scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        if self.is_long:
            await asyncio.to_thread(release_turn)
        self.working += 1
        self.most = max(self.most, self.working)
        await self.gate.wait()
        self.working -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(self, path: str = "/", *, body: asyncio.Event | None = None) -> dict[str, Any]:
        """Return the answer; the end of the body arrives with `body`."""
        answer: dict[str, Any] = {}

        async def receive() -> dict[str, Any]:
            if body:
                await body.wait()
            return {"type": "http.request", "body": b""}

        async def send(message: dict[str, Any]) -> None:
            answer.update(message)

        await self.application({"type": "http", "path": path, "method": "GET"}, receive, send)
        return answer


async def open_soon(server: Server, working: int = 0) -> None:
    """Open the gate when as many requests work at once, or after ten seconds."""
    await asyncio.sleep(0.05)
    for _ in range(100):
        if server.most >= working:
            break
        await asyncio.sleep(0.1)
    server.gate.set()


def test_requests_beyond_the_limit_wait_for_their_turn() -> None:
    async def run() -> tuple[list[dict[str, Any]], int]:
        server = Server(2)
        *answers, _none = await asyncio.gather(*(server.ask() for _ in range(8)), open_soon(server))
        return answers, server.most

    answers, most = asyncio.run(run())
    assert [answer["status"] for answer in answers] == [200] * 8
    assert most == 2


@pytest.mark.parametrize(
    ("path", "word"), [("/", b"</html>"), ("/api/v1/runs", b'"busy"'), ("/v1/models", b"busy")]
)
def test_the_rest_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, path: str, word: bytes) -> None:
    monkeypatch.setattr(back_pressure, "WAITING", 1)

    async def run() -> list[dict[str, Any]]:
        server = Server(1)
        *answers, _none = await asyncio.gather(*(server.ask(path) for _ in range(3)), open_soon(server))
        return answers

    *served, refused = asyncio.run(run())
    assert [answer["status"] for answer in served] == [200, 200]
    headers = dict(refused["headers"])
    assert (refused["status"], headers[b"Retry-After"], headers[b"Cache-Control"]) == (503, b"5", b"no-store")
    assert word in refused["body"]


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(back_pressure, "WAIT_SECONDS", 0.01)

    async def run() -> list[int]:
        server = Server(1)
        *answers, _none = await asyncio.gather(server.ask(), server.ask(), open_soon(server))
        server.working = 0
        return [answer["status"] for answer in [*answers, await server.ask()]]

    assert asyncio.run(run()) == [200, 503, 200]


def test_a_slow_body_holds_no_turn() -> None:
    async def run() -> int:
        server, body = Server(1), asyncio.Event()
        server.gate.set()
        slow = asyncio.create_task(server.ask(body=body))
        status: int = (await server.ask())["status"]
        body.set()
        await slow
        return status

    assert asyncio.run(run()) == 200


def test_a_request_that_waits_for_an_engine_holds_no_turn() -> None:
    async def run() -> int:
        server = Server(1, is_long=True)
        await asyncio.gather(*(server.ask() for _ in range(5)), open_soon(server, 5))
        return server.most

    assert asyncio.run(run()) == 5


def test_probes_need_no_turn() -> None:
    async def run() -> int:
        server = Server(1)
        await asyncio.gather(server.ask(), server.ask("/healthz/"), open_soon(server, 2))
        return server.most

    assert asyncio.run(run()) == 2


def test_few_passwords_are_hashed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1 if settings.WEB_CONCURRENCY > 1 else 2
    working, most, all_of_them = 0, 0, threading.Barrier(limit)

    def encode(*_arguments: object) -> str:
        nonlocal working, most
        working += 1
        most = max(most, working)
        all_of_them.wait(10)
        working -= 1
        return "hash"

    monkeypatch.setattr(password_hashing.hashers.Argon2PasswordHasher, "encode", encode)
    hasher = password_hashing.Argon2PasswordHasher()
    threads = [threading.Thread(target=hasher.encode, args=("password", "salt")) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == limit


def test_a_hash_is_that_of_argon2() -> None:
    hasher = password_hashing.Argon2PasswordHasher()
    assert hasher.verify("correct-horse", make_password("correct-horse", hasher=hasher))


def test_pages_are_compressed_for_browsers_that_ask(client: Client, vera: User) -> None:
    client.force_login(vera)
    plain = client.get(reverse("home"))
    packed = client.get(reverse("home"), headers={"Accept-Encoding": "gzip"})
    assert packed["Content-Encoding"] == "gzip"
    assert len(packed.content) < len(plain.content) / 2
    assert b"</html>" in gzip.decompress(packed.content)


def test_a_live_region_that_has_not_changed_is_not_sent_again(client: Client, vera: User) -> None:
    client.force_login(vera)
    first = client.get(reverse("home-progress"))
    again = client.get(reverse("home-progress"), headers={"If-None-Match": first["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_page_that_has_not_changed_is_not_sent_again(client: Client, vera: User) -> None:
    client.force_login(vera)

    def ask(etag: str) -> Any:
        return client.get(reverse("training-run-index"), headers={"If-None-Match": etag})

    first = ask("")
    again = ask(first["ETag"])
    assert (again.status_code, again.content) == (304, b"")
    # The cookie of another sign-in, which the token of the first page does not fit.
    client.cookies[settings.CSRF_COOKIE_NAME] = "x" * 32
    assert ask(first["ETag"]).status_code == 200
