"""Every route and method for every kind of caller. A route without a rule fails.

Routes come from the URL table and their methods from the Allow header, so that a new route cannot be added
without a rule. All objects belong to the project Support and are created once for this module.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from django.conf import settings
from django.db import transaction
from django.http import HttpResponseBase
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from pytest_django.plugin import DjangoDbBlocker

from dashboard.api import api
from dashboard.models import (
    Adapter,
    ApiToken,
    Invitation,
    Membership,
    Project,
    Role,
    SavedView,
    ShareLink,
    TargetModuleConfig,
    TrainingRun,
    User,
    WorkerNode,
)
from tests.conftest import make_base_model, make_dataset, make_run, make_user
from tests.dashboard.route_rules import CALLERS, OBJECTS, QUERIES, RULES
from tests.dashboard.studies.factories import make_study
from workers.target_modules.custom import Selection

pytestmark = pytest.mark.django_db


@dataclass
class World:
    """One object of each kind in Support, and the callers."""

    project: Project
    users: dict[str, User]
    tokens: dict[str, str]
    objects: dict[str, int]
    invitation_secret: str
    share_secret: str


@pytest.fixture(scope="module")
def world(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[World]:
    """Create the world in a transaction that is rolled back after the module."""
    with django_db_blocker.unblock(), transaction.atomic():
        yield create_world()
        transaction.set_rollback(True)


@pytest.fixture(scope="module", autouse=True)
def openapi_document() -> Iterator[None]:
    """Generate the OpenAPI document once: it is the same for all callers."""
    document = api.get_openapi_schema(path_params={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "get_openapi_schema", lambda **_options: document)
        yield


def create_world() -> World:
    project, elsewhere, own = (
        Project.objects.named(name) for name in ("Support", "Elsewhere", "Mixed's own")
    )
    viewer = make_user("vera@example.org", project, Role.VIEWER)
    editor = make_user("ed@example.org", project, Role.EDITOR)
    manager = make_user("mara@example.org", project, Role.MANAGER)
    otto = make_user("otto@example.org", elsewhere, Role.MANAGER)
    mixed = make_user("mixed@example.org", project, Role.VIEWER)
    own.admit(mixed, Role.MANAGER)
    root = User.objects.create_superuser("root@example.org")
    users = dict(zip(CALLERS[1:], (viewer, editor, manager, otto, mixed, root), strict=True))
    homes = {"otto": elsewhere, "mixed": own}
    tokens = {
        name: ApiToken.issue(homes.get(name, project), user, "matrix")[1] for name, user in users.items()
    }
    base_model = make_base_model(project)
    dataset = make_dataset(project, by=editor)
    run = make_run(project, dataset, base_model, by=editor)
    study = make_study(project, dataset, base_model, by=editor)
    config = TargetModuleConfig.objects.compose(
        project=project, by=editor, name="Ours", selection=Selection(("o_proj",))
    )
    invitation, invitation_secret = Invitation.issue(project, "new@example.org", Role.VIEWER, manager)
    link, share_secret = ShareLink.issue(study, manager, days=7)
    objects = {
        "dataset": dataset.pk,
        "base_model": base_model.pk,
        "run": run.pk,
        "target_module_config": config.pk,
        "adapter": publish_adapter(run).pk,
        "membership": Membership.objects.get(user=viewer).pk,
        "invitation": invitation.pk,
        "token": ApiToken.objects.get(user=editor).pk,
        "job": run.job_id or 0,
        "worker": WorkerNode.objects.create(name="gpu0@host", queue="gpu", host="host", pid=1).pk,
        "study": study.pk,
        "share_link": link.pk,
        "saved_view": SavedView.objects.create(project=project, name="Mine", query="runs=1").pk,
    }
    return World(project, users, tokens, objects, invitation_secret, share_secret)


def publish_adapter(run: TrainingRun) -> Adapter:
    """Publish an adapter with files to download."""
    folder = settings.DATA_DIR / "adapters" / "matrix"
    folder.mkdir(parents=True, exist_ok=True)
    files = {"adapter_config.json": '{"r": 4}', "adapter_model.safetensors": "{}", "run.json": "{}"}
    for name, text in files.items():
        (folder / name).write_text(text)
    return Adapter.objects.publish(run, "matrix", dict.fromkeys(files, "ef" * 32), 2)


@dataclass(frozen=True)
class Route:
    """One entry of the URL table."""

    name: str
    parameters: tuple[str, ...]

    @property
    def is_api(self) -> bool:
        return self.name.startswith("api:")

    def address(self, world: World) -> str:
        """Return the address for the objects of Support."""
        values = {name: self.value(name, world) for name in self.parameters}
        return reverse(self.name, kwargs=values) + QUERIES.get(self.name, "").format(**world.objects)

    def value(self, parameter: str, world: World) -> Any:
        if parameter in ("uidb36", "key"):
            return "1" if parameter == "uidb36" else "abc-def"
        if parameter == "secret":
            return world.share_secret if self.name == "share-link-open" else world.invitation_secret
        short = self.name.rpartition(":")[2]
        prefix = max((name for name in OBJECTS if short.startswith(name)), key=len)
        return world.objects[OBJECTS[prefix]]


@cache
def routes() -> tuple[Route, ...]:
    """Return every route but Django's admin, which has its own test."""
    # The API has one entry per operation; the Allow header lists the methods of all of them.
    return tuple(dict.fromkeys(walk(get_resolver().url_patterns, "")))


def walk(patterns: list[Any], namespace: str) -> Iterator[Route]:
    for entry in patterns:
        if isinstance(entry, URLResolver):
            if entry.namespace != "admin":
                inner = f"{namespace}{entry.namespace}:" if entry.namespace else namespace
                yield from walk(entry.url_patterns, inner)
        elif isinstance(entry, URLPattern):
            assert entry.name, f"{entry.pattern} has no name"
            yield Route(f"{namespace}{entry.name}", tuple(entry.pattern.regex.groupindex))


def rules() -> dict[tuple[str, str], str]:
    """Return (route name, method) -> outcomes."""
    return {
        (name, method): outcomes
        for outcomes, lines in RULES.items()
        for method, *names in map(str.split, lines.strip().splitlines())
        for name in names
    }


def client_for(world: World, caller: str, route: Route) -> Client:
    """Return a client that is signed in, or that sends the caller's token to the API."""
    if caller == "anonymous":
        return Client()
    if route.is_api:
        return Client(headers={"Authorization": f"Bearer {world.tokens[caller]}"})
    client = Client()
    client.force_login(world.users[caller])
    if caller == "mixed":
        session = client.session
        session["project"] = Project.objects.get(name="Mixed's own").pk
        session.save()
    return client


def send(client: Client, route: Route, method: str, world: World) -> HttpResponseBase:
    """Send a request with an almost empty body."""
    address = route.address(world)
    body = {"project": world.project.pk} if route.name == "project-open" else {}
    if route.is_api and method != "GET":
        return client.generic(method, address, json.dumps(body), content_type="application/json")
    return client.post(address, body) if method == "POST" else client.generic(method, address)


@cache
def allowed_methods(route: Route, address: str, token: str, user_pk: int) -> frozenset[str]:
    """Return the methods from the answer to an unknown one."""
    client = Client(headers={"Authorization": f"Bearer {token}"} if route.is_api else {})
    if not route.is_api:
        client.force_login(User.objects.get(pk=user_pk))
    answer = client.generic("LINK", address)
    listed = set(answer.headers["Allow"].split(", ")) if answer.status_code == 405 else set()
    return frozenset(listed - {"HEAD", "OPTIONS", "PUT"} or {"GET"})


def methods_of(route: Route, world: World) -> list[str]:
    manager = world.users["manager"]
    return sorted(allowed_methods(route, route.address(world), world.tokens["manager"], manager.pk))


def outcome(answer: HttpResponseBase) -> str:
    """Return one of the characters of RULES."""
    status = answer.status_code
    assert status < 500, getattr(answer, "content", b"")[:2000]
    asks_to_sign_in = status == 302 and answer.headers["Location"].startswith("/sign-in/?next=")
    if status == 401 or asks_to_sign_in:
        return "?"
    return {403: "-", 404: "0"}.get(status, "+")


def by_name(route: Route) -> str:
    return route.name


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
def test_read_tokens_change_nothing(route: Route, world: World) -> None:
    token = ApiToken.issue(world.project, world.users["manager"], "reader", scope=ApiToken.Scope.READ)[1]
    client = Client(headers={"Authorization": f"Bearer {token}"})
    for method in set(methods_of(route, world)) - {"GET"}:
        assert send(client, route, method, world).status_code == 403


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
