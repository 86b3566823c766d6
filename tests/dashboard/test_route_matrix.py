"""Every route and method for every kind of caller. A route without a rule fails.

All objects belong to the project Support and are created once for this module.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from django.db import transaction
from django.http import HttpResponseBase
from django.test import Client
from django.urls import URLPattern, get_resolver

from dashboard.models import ApiToken, Role
from tests.conftest import make_user
from tests.dashboard.route_rules import CALLERS, RULES
from tests.dashboard.routes import Route, World, by_name, client_for, methods_of, routes, send

pytestmark = pytest.mark.django_db


@cache
def rules() -> dict[tuple[str, str], str]:
    """Return (route name, method) -> outcomes."""
    return {
        (name, method): outcomes
        for outcomes, lines in RULES.items()
        for method, *names in map(str.split, lines.strip().splitlines())
        for name in names
    }


# Bodies, fields of forms and queries that no route can want.
JUNK: tuple[Any, ...] = (None, [], "text", 5, {"no_such_key": 1}, {"name": {"a": []}, "dataset": "x", "r": 0})
FORMS = (
    {
        "name": "x" * 5000,
        "kind": "hub",
        "hub_id": "../../etc/passwd",
        "revision": "a b",
        "stage": "golden",
        "dataset_version": "abc",
        "base_model": "-1",
        "target_module_config": "made-up",
        "r": "x",
        "role": "king",
    },
    {
        "version": "x",
        "prompt_column": "nope",
        "project": "x",
        "lifetime": "-1",
        "folder": "../..",
        "name": "",
    },
)
WRONG_QUERIES = (
    "limit=0&cursor=%00&state=made-up&q=%00&r=0&base_model=x&name=%F0&max_steps=x&learning_rate=1e9&dataset=x&clone=-1",
    "limit=1e9&since=a&cursor=-1&runs=abc&runs=999999&runs=-1&base_model=999999999999999999999",
)


def outcome(answer: HttpResponseBase) -> str:
    """Return one of the characters of RULES."""
    status = answer.status_code
    assert status < 500, getattr(answer, "content", b"")[:2000]
    asks_to_sign_in = status == 302 and answer.headers["Location"].startswith("/sign-in/?next=")
    if status == 401 or asks_to_sign_in:
        return "?"
    return {403: "-", 404: "0"}.get(status, "+")


@pytest.mark.parametrize("route", routes(), ids=by_name)
def test_each_route_admits_its_callers(route: Route, world: World) -> None:
    for method in methods_of(route, world):
        rule = rules().get((route.name, method))
        assert rule, f"Add {method} {route.name} to RULES."
        outcomes = {}
        for caller in CALLERS:
            with transaction.atomic():
                outcomes[caller] = outcome(send(client_for(world, caller, route), route, method, world))
                transaction.set_rollback(True)
        assert outcomes == dict(zip(CALLERS, rule, strict=True)), f"{method} {route.name}"


def test_each_rule_has_a_route() -> None:
    assert {name for name, _method in rules()} == {route.name for route in routes()}


def test_only_views_marked_as_public_open_without_sign_in() -> None:
    by_rule = {name for (name, _method), rule in rules().items() if rule[0] != "?"}
    patterns = [entry for entry in get_resolver().url_patterns if isinstance(entry, URLPattern)]
    marked = {entry.name for entry in patterns if not getattr(entry.callback, "login_required", True)}
    assert marked == by_rule


@pytest.mark.parametrize("route", [route for route in routes() if not route.is_api], ids=by_name)
def test_unsafe_requests_need_the_csrf_token(route: Route, world: World) -> None:
    for method in set(methods_of(route, world)) - {"GET"}:
        client = client_for(world, "manager", route)
        client.handler.enforce_csrf_checks = True
        assert send(client, route, method, world).status_code == 403


@pytest.mark.parametrize("route", [route for route in routes() if route.is_api], ids=by_name)
def test_api_calls_do_not_accept_a_session(route: Route, world: World) -> None:
    client = Client()
    client.force_login(world.users["manager"])
    expected = 200 if route.name in ("api:openapi-json", "api:openapi-view") else 401
    for method in methods_of(route, world):
        assert send(client, route, method, world).status_code == expected


@pytest.mark.parametrize("route", [route for route in routes() if route.is_api], ids=by_name)
def test_token_of_a_removed_member_is_refused(route: Route, world: World) -> None:
    former = make_user("former@example.org", world.project, Role.MANAGER)
    secret = ApiToken.issue(world.project, former, "former")[1]
    world.project.memberships.get(user=former).remove()
    client = Client(headers={"Authorization": f"Bearer {secret}"})
    for method in methods_of(route, world):
        assert send(client, route, method, world).status_code == 401


@pytest.mark.parametrize("route", [route for route in routes() if route.is_api], ids=by_name)
def test_read_tokens_change_nothing(route: Route, world: World) -> None:
    token = ApiToken.issue(world.project, world.users["manager"], "reader", scope=ApiToken.Scope.READ)[1]
    client = Client(headers={"Authorization": f"Bearer {token}"})
    for method in set(methods_of(route, world)) - {"GET"}:
        assert send(client, route, method, world).status_code == 403


@pytest.mark.parametrize("route", routes(), ids=by_name)
def test_junk_breaks_nothing(route: Route, world: World) -> None:
    client = client_for(world, "manager", route)
    address = route.address(world)
    for method in methods_of(route, world):
        if method == "GET":
            mark = "&" if "?" in address else "?"
            answers = [client.get(f"{address}{mark}{query}") for query in WRONG_QUERIES]
        elif route.is_api:
            bodies = map(json.dumps, JUNK)
            answers = [
                client.generic(method, address, body, content_type="application/json") for body in bodies
            ]
        else:
            answers = [client.post(address, fields) for fields in FORMS]
        assert all(answer.status_code < 500 for answer in answers), method


@pytest.mark.parametrize("caller", ["anonymous", "manager"])
def test_admin_is_closed_to_others(world: World, caller: str) -> None:
    client = client_for(world, caller, Route("admin:index", ()))
    for path in ("", "login/", "dashboard/user/", "dashboard/user/add/", "dashboard/project/", "auth/group/"):
        assert client.get(f"/admin/{path}").status_code in (302, 403)
        assert client.post(f"/admin/{path}").status_code in (302, 403)


def test_admin_opens_for_superusers(world: World) -> None:
    client = client_for(world, "root", Route("admin:index", ()))
    for path in ("", "dashboard/user/", "dashboard/user/add/", "dashboard/project/"):
        assert client.get(f"/admin/{path}").status_code == 200
