"""Malformed bodies at every route that accepts a body, through the ASGI application: 4xx, never 5xx."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlencode

import pytest
from asgiref.sync import async_to_sync
from django import forms
from django.conf import settings
from django.db import transaction
from django.test import Client
from pytest_django import Settings

from dashboard.api import api
from dashboard.asgi import application
from tests.dashboard.routes import Route, World, methods_of, routes
from tests.openai_client import open_connection

pytestmark = pytest.mark.django_db
SECRET = "c" * 32  # CSRF's, in cookie and header
MULTIPART = "multipart/form-data; boundary=b"
FORM = "application/x-www-form-urlencoded"
ADMIN_PAGES = ("login/", "logout/", "dashboard/user/add/", "dashboard/project/add/", "dashboard/user/")


def part(value: bytes = b"1", disposition: bytes = b'form-data; name="name"', *headers: bytes) -> bytes:
    lines = [b"--b", b"Content-Disposition: " + disposition, *headers, b"", value, b""]
    return b"\r\n".join(lines)


FILE = b'form-data; name="file"; filename="rows.jsonl"'
BASE64 = b"Content-Transfer-Encoding: base64"
END = b"--b--\r\n"
# Body, content type, and further headers that replace true ones.
Request = tuple[bytes, str, dict[str, bytes]]
BROKEN: dict[str, Request] = {
    "no header": (b"--b\r\nbroken", MULTIPART, {}),
    "no part": (b"no boundary at all", MULTIPART, {}),
    "header without end": (b'--b\r\nContent-Disposition: form-data; name="name"', MULTIPART, {}),
    "no boundary": (part() + END, "multipart/form-data", {}),
    "empty boundary": (part() + END, "multipart/form-data; boundary=", {}),
    "long boundary": (part() + END, "multipart/form-data; boundary=" + "b" * 300, {}),
    "boundary that is no ASCII": (part() + END, "multipart/form-data; boundary=\xe9", {}),
    "part without a name": (part(disposition=b"form-data") + END, MULTIPART, {}),
    "base64 cut off": (part(b"abcde", FILE, BASE64) + END, MULTIPART, {}),
    "many parts": (part() * 1100 + END, MULTIPART, {}),
    "many files": (part(b"1", FILE) * 110 + END, MULTIPART, {}),
    "many fields": (b"&".join([b"a=1"] * 1100), FORM, {}),
    "negative length": (part() + END, MULTIPART, {"content-length": b"-1"}),
    "length that is no number": (part() + END, MULTIPART, {"content-length": b"1x"}),
    "length in other digits": (b"name=1", FORM, {"content-length": b"\xb2"}),
    "length of 5,000 digits": (b"name=1", FORM, {"content-length": b"9" * 5000}),
}
# Read as far as possible, or as another type.
STRANGE: dict[str, Request] = {
    "unknown charset": (part(b"\xff\xfe") + END, f"{MULTIPART}; charset=klingon", {}),
    "charset that decodes no form": (part(b"\xff") + END, f"{MULTIPART}; charset=idna", {}),
    "field in another charset": (b"name=%ff%fe", f"{FORM}; charset=utf-16", {}),
    "other boundary": (part() + END, "multipart/form-data; boundary=c", {}),
    "base64 of other letters": (part(b"\xff" * 8, FILE, BASE64) + END, MULTIPART, {}),
    "NUL in a value": (part(b"a\x00b") + END, MULTIPART, {}),
    "NUL in a name": (part(disposition=b'form-data; name="a\x00b"') + END, MULTIPART, {}),
    "NUL in a field": (b"name=a%00b", FORM, {}),
    "no end": (part(), MULTIPART, {}),
    "length too long": (part() + END, MULTIPART, {"content-length": b"5000"}),
    "length too short": (part() + END, MULTIPART, {"content-length": b"5"}),
    "no type": (b"name=1", "", {}),
    "unknown type": (b"<a/>", "text/xml", {}),
    "broken JSON": (b'{"name": ', "application/json", {}),
    "deep JSON": (b"[" * 100_000, "application/json", {}),
    "JSON with a lone surrogate": (b'{"name": "\\ud800"}', "application/json", {}),
    "JSON with NUL": (b'{"name": "a\\u0000b"}', "application/json", {}),
}


@cache
def field_names() -> list[str]:
    """Return the names of all fields of forms and of the API."""
    found = {"next", "seen", "keep", "priority", "version", "source", "scope", "action", "_save"}
    kinds: list[type] = [forms.BaseForm]
    for kind in kinds:
        kinds += kind.__subclasses__()
        found |= set(getattr(kind, "base_fields", {}))
    for schema in api.get_openapi_schema()["components"]["schemas"].values():
        found |= set(schema.get("properties", {}))
    return sorted(found)


WORDS = "0 -1 1.5 1e400 nan 2026-02-30 on true null [] {} approved retired high manager ../../etc/passwd"
ODD = [*WORDS.split(), "", "9" * 30, "9" * 5000, "x" * 10_000, "a\x00b", "é🙂", "\r\nX: 1"]
ODD_JSON = [None, True, -1, 1e308, 10**30, [], [[]], {}, {"a": {"b": []}}, ["x", None], [10**30] * 3]


@dataclass
class Target:
    """An address and a caller's headers."""

    path: str
    method: str
    headers: list[tuple[bytes, bytes]]


@dataclass
class Exchange:
    """One request of the ASGI protocol."""

    scope: dict[str, object]
    body: bytes
    status: int = 0
    content: bytes = b""
    is_received: bool = False

    async def receive(self) -> dict[str, object]:
        if self.is_received:
            await asyncio.Event().wait()  # the client waits for the answer
        self.is_received = True
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def send(self, message: dict[str, object]) -> None:
        self.status = int(message.get("status", self.status))  # type: ignore[call-overload]
        self.content += bytes(message.get("body", b""))  # type: ignore[arg-type, call-overload]


def send(target: Target, body: bytes, kind: str, changes: dict[str, bytes]) -> Exchange:
    """Send the body and undo what the request changed."""
    path, _mark, query = target.path.partition("?")
    given = {
        b"host": b"localhost",
        b"content-length": str(len(body)).encode(),
        b"content-type": kind.encode("latin-1"),
        **{name.encode(): value for name, value in changes.items()},
    }
    scope: dict[str, object] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": target.method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [*given.items(), *target.headers],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
    }
    exchange = Exchange(scope, body)
    with transaction.atomic(), open_connection():
        async_to_sync(application)(scope, exchange.receive, exchange.send)
        transaction.set_rollback(True)
    return exchange


def targets(world: World) -> Iterator[Target]:
    """Return every route and method that accepts a body, with the headers of a caller who may use it."""
    for route in routes():
        for method in methods_of(route, world):
            if method != "GET":
                yield target_of(route, method, world)
    for page in ADMIN_PAGES:
        yield Target(f"/admin/{page}", "POST", session(world, "root"))


def target_of(route: Route, method: str, world: World) -> Target:
    if route.is_api:
        headers = [(b"authorization", f"Bearer {world.tokens['manager']}".encode())]
    else:
        headers = session(world, "manager")
    return Target(route.address(world), method, headers)


def session(world: World, name: str) -> list[tuple[bytes, bytes]]:
    client = Client()
    client.force_login(world.users[name])
    key = client.cookies[settings.SESSION_COOKIE_NAME].value
    cookies = f"{settings.SESSION_COOKIE_NAME}={key}; {settings.CSRF_COOKIE_NAME}={SECRET}"
    return [(b"cookie", cookies.encode()), (b"x-csrftoken", SECRET.encode())]


@pytest.fixture
def everywhere(world: World, settings: Settings) -> list[Target]:
    """Return every target, without the API's limit of writes per minute."""
    settings.API_WRITES_PER_MINUTE = 10**6
    return list(targets(world))


@pytest.mark.parametrize("name", ["no header", "no boundary", "length that is no number"])
def test_broken_form_is_refused_everywhere(everywhere: list[Target], name: str) -> None:
    statuses = {one.path: send(one, *BROKEN[name]).status for one in everywhere if one.method == "POST"}
    assert {path: status for path, status in statuses.items() if not 400 <= status < 500} == {}


@pytest.mark.parametrize("name", ["NUL in a value", "NUL in a field"])
def test_odd_form_is_no_internal_error_anywhere(everywhere: list[Target], name: str) -> None:
    statuses = {one.path: send(one, *STRANGE[name]).status for one in everywhere if one.method == "POST"}
    assert {path: status for path, status in statuses.items() if not 200 <= status < 500} == {}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("address", ["/sign-in/", "/account/password/", "/datasets/new/"])
def test_page_answers_400_to_a_broken_body(world: World, address: str, name: str) -> None:
    exchange = send(Target(address, "POST", session(world, "manager")), *BROKEN[name])
    assert exchange.status == 400
    assert b"could not read the request" in exchange.content


@pytest.mark.parametrize("name", BROKEN)
def test_api_answers_400_to_a_broken_upload(world: World, settings: Settings, name: str) -> None:
    settings.API_WRITES_PER_MINUTE = 10**6
    route = Route("api:dataset-index", ())
    exchange = send(target_of(route, "POST", world), *BROKEN[name])
    assert exchange.status in (400, 413, 422)
    assert json.loads(exchange.content)["error"]["code"]


@pytest.mark.parametrize("number", [60, pytest.param(20_000, marks=pytest.mark.proof)])
def test_no_random_body_is_an_internal_error(everywhere: list[Target], world: World, number: int) -> None:
    chance = random.Random(1)
    for step in range(number):
        target, request = chance.choice(everywhere), random_request(chance, world)
        status = send(target, *request).status
        assert 200 <= status < 500, (step, target.method, target.path, request)


def random_request(chance: random.Random, world: World) -> Request:
    """Return a malformed body with random changes, or a form or JSON object of known names and odd values."""
    shape = chance.choice(["malformed", "form", "multipart", "json"])
    if shape == "malformed":
        body, kind, changes = chance.choice([*BROKEN.values(), *STRANGE.values()])
        if chance.random() < 0.3:
            kind = chance.choice([MULTIPART, FORM, "application/json"])
        return damage(body[:20_000], chance), kind, changes
    names = chance.sample(field_names(), chance.randrange(9))
    values: list[str] = [*ODD, *map(str, world.objects.values())]
    if shape == "json":
        content = {name: chance.choice([*values, *ODD_JSON]) for name in names}
        return json.dumps(content).encode(), "application/json", {}
    pairs = [(name, chance.choice(values)) for name in names]
    if shape == "form":
        return urlencode(pairs).encode(), FORM, {}
    more = chance.choice([b"", b'; filename="rows.jsonl"', b'; filename="../../x"'])
    parts = [part(value.encode(), b'form-data; name="%s"%s' % (name.encode(), more)) for name, value in pairs]
    return b"".join(parts) + END, MULTIPART, {}


def damage(body: bytes, chance: random.Random) -> bytes:
    """Replace up to three short slices."""
    for _change in range(chance.randrange(4)):
        start = chance.randrange(len(body) + 1)
        end = start + chance.randrange(8)
        added = [b"", chance.randbytes(8), body[start:end] * 2, b"\r\n", b"--b", b"\x00", b"%", b'"', b";"]
        body = body[:start] + chance.choice(added) + body[end:]
    return body
