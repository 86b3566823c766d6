"""Every route x method x caller x own or another project. A route without a row in RULES fails.

The routes are read from the URL table and their methods from what they answer to an unknown one, so nothing
can be added without saying here who may use it. Rows belong to the project Support.
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

from dashboard.models import (
    Adapter,
    ApiToken,
    Dataset,
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
from tests.dashboard.studies import make_study
from workers.selections import Selection

# Callers. Otto manages another project; Mixed views Support but has a project of their own open, which they
# manage; Root is superuser without any membership.
CALLERS = ("anonymous", "viewer", "editor", "manager", "otto", "mixed", "root")
# Outcomes, in the order of CALLERS: + lets in, ? asks to sign in, - says who may, 0 denies that it exists.
PUBLIC = "+++++++"
SIGNED_IN = "?++++++"
PAGE = "?+++++-"  # lists and forms in one's own open project
CREATE = "?-++++-"
DECIDE = "?--+++-"  # managers, in their own open project
READ = "?+++0+-"
EDIT = "?-++0--"
MANAGE = "?--+0--"
SITE = "?-----+"
KEEPERS = "?--++++"  # managers, in their own open project, and superusers
OWN_TOKEN = "?0++00-"  # Ed's: Ed and the project's managers
# The API, by token: no token 401, Otto's and Mixed's tokens are of their own projects.
API_LIST = "?++++++"
API_CREATE = "?-++++-"
API_READ = "?+++000"
API_EDIT = "?-++000"
API_DECIDE = "?--+++-"
API_MANAGE = "?--+000"
API_MISSING = "?000000"
API_NOBODY = "?------"  # a token is of one project, and here are three; its own test lets somebody in

RULES: dict[tuple[str, str], str] = {
    ("home", "GET"): SIGNED_IN,
    ("home-progress", "GET"): PAGE,
    ("health", "GET"): PUBLIC,
    # Accounts. The set-up page has gone (404) as soon as somebody exists; its own test covers it.
    ("account_login", "GET"): PUBLIC,
    ("account_login", "POST"): PUBLIC,
    ("account_logout", "POST"): PUBLIC,
    ("account_inactive", "GET"): PUBLIC,
    ("account_change_password", "GET"): SIGNED_IN,
    ("account_change_password", "POST"): SIGNED_IN,
    ("account_set_password", "GET"): SIGNED_IN,
    ("account_set_password", "POST"): SIGNED_IN,
    ("account_reset_password", "GET"): PUBLIC,
    ("account_reset_password", "POST"): PUBLIC,
    ("account_reset_password_done", "GET"): PUBLIC,
    ("account_reset_password_from_key", "GET"): PUBLIC,
    ("account_reset_password_from_key", "POST"): PUBLIC,
    ("account_reset_password_from_key_done", "GET"): PUBLIC,
    ("set-up", "GET"): "0000000",
    ("set-up", "POST"): "0000000",
    # Projects and their people. An invitation is for one address: the others are told so.
    ("project-create", "GET"): SITE,
    ("project-create", "POST"): SITE,
    ("project-open", "POST"): "?+++0+-",
    ("team-index", "GET"): PAGE,
    ("membership-change", "POST"): MANAGE,
    ("membership-remove", "POST"): MANAGE,
    ("invitation-create", "GET"): DECIDE,
    ("invitation-create", "POST"): DECIDE,
    ("invitation-revoke", "POST"): MANAGE,
    ("invitation-accept", "GET"): "+------",
    ("invitation-accept", "POST"): "+------",
    # Datasets
    ("dataset-index", "GET"): PAGE,
    ("dataset-create", "GET"): CREATE,
    ("dataset-create", "POST"): CREATE,
    ("dataset-sample", "POST"): CREATE,
    ("dataset-detail", "GET"): READ,
    ("dataset-progress", "GET"): READ,
    ("dataset-import-again", "POST"): EDIT,
    ("dataset-report", "GET"): READ,
    # Base models
    ("base-model-index", "GET"): PAGE,
    ("base-model-create", "GET"): DECIDE,
    ("base-model-create", "POST"): DECIDE,
    ("base-model-detail", "GET"): READ,
    ("base-model-progress", "GET"): READ,
    ("base-model-inspect", "POST"): MANAGE,
    # Target modules. A preset would be for everybody; the row here is the project's own.
    ("target-module-config-index", "GET"): PAGE,
    ("target-module-config-create", "GET"): CREATE,
    ("target-module-config-create", "POST"): CREATE,
    ("target-module-config-explain", "POST"): CREATE,
    ("target-module-config-detail", "GET"): READ,
    ("target-module-config-export", "GET"): READ,
    # Training runs
    ("training-run-create", "GET"): CREATE,
    ("training-run-create", "POST"): CREATE,
    ("training-run-presets", "GET"): PAGE,
    ("training-run-forecast", "GET"): PAGE,
    ("training-run-index", "GET"): PAGE,
    ("training-run-detail", "GET"): READ,
    ("training-run-progress", "GET"): READ,
    ("training-run-samples", "GET"): READ,
    ("training-run-log", "GET"): READ,
    ("training-run-cancel", "GET"): EDIT,
    ("training-run-cancel", "POST"): EDIT,
    ("training-run-resume", "POST"): EDIT,
    ("training-run-score", "POST"): EDIT,
    ("training-run-stream", "GET"): READ,
    ("training-run-judge", "GET"): READ,
    ("training-run-judge", "POST"): EDIT,
    ("training-run-vote", "GET"): READ,
    ("training-run-vote", "POST"): EDIT,
    ("training-run-metrics", "GET"): READ,
    ("training-run-metrics-csv", "GET"): READ,
    # Studies
    ("study-index", "GET"): PAGE,
    ("study-create", "GET"): CREATE,
    ("study-create", "POST"): CREATE,
    ("study-arms", "GET"): PAGE,
    ("study-plan", "GET"): PAGE,
    ("study-detail", "GET"): READ,
    ("study-grid", "GET"): READ,
    ("study-cancel", "POST"): EDIT,
    ("study-seeds", "POST"): EDIT,
    ("study-score", "POST"): EDIT,
    ("study-deltas-csv", "GET"): READ,
    ("study-scores-csv", "GET"): READ,
    ("study-json", "GET"): READ,
    ("study-report", "GET"): READ,
    ("study-items", "GET"): READ,
    ("study-judge", "GET"): READ,
    ("study-judge", "POST"): EDIT,
    ("study-vote", "GET"): READ,
    ("study-vote", "POST"): EDIT,
    ("decision-create", "POST"): EDIT,
    ("share-link-create", "POST"): MANAGE,
    ("share-link-revoke", "POST"): MANAGE,
    ("share-link-open", "GET"): PUBLIC,
    # Compare. Runs are chosen by query parameters: foreign ones are left out, which its own tests hold.
    ("compare", "GET"): PAGE,
    ("compare-csv", "GET"): PAGE,
    # Without runs there are no numbers; its own test lets somebody in.
    ("compare-json", "GET"): "?00000-",
    ("saved-view-create", "POST"): CREATE,
    ("saved-view-delete", "POST"): EDIT,
    # Adapters
    ("adapter-index", "GET"): PAGE,
    ("adapter-detail", "GET"): READ,
    ("adapter-stage", "POST"): MANAGE,
    ("adapter-download", "GET"): READ,
    # Workers and queue
    ("queue-index", "GET"): SIGNED_IN,
    ("queue-board", "GET"): SIGNED_IN,
    ("queue-cancel", "POST"): EDIT,
    ("queue-prioritise", "POST"): MANAGE,
    ("worker-pause", "POST"): SITE,
    ("worker-resume", "POST"): SITE,
    # Settings
    ("settings", "GET"): SIGNED_IN,
    ("health-index", "GET"): KEEPERS,
    ("storage-index", "GET"): KEEPERS,
    ("storage-clean-up", "POST"): KEEPERS,
    ("compute-budget-index", "GET"): PAGE,
    ("compute-budget-change", "POST"): DECIDE,
    ("token-index", "GET"): PAGE,
    ("token-create", "GET"): PAGE,
    ("token-create", "POST"): PAGE,
    ("token-revoke", "POST"): OWN_TOKEN,
    # The API; a list also answers for what is made by POST at its address
    ("api:openapi-json", "GET"): API_LIST,
    ("api:openapi-view", "GET"): API_LIST,
    ("api:api-root", "GET"): API_MISSING,
    ("api:missing", "GET"): API_MISSING,
    ("api:me-detail", "GET"): API_LIST,
    ("api:base-model-index", "GET"): API_LIST,
    ("api:base-model-index", "POST"): API_DECIDE,
    ("api:base-model-detail", "GET"): API_READ,
    ("api:base-model-inspect", "POST"): API_MANAGE,
    ("api:base-model-modules", "GET"): API_READ,
    ("api:base-model-presets", "GET"): API_READ,
    ("api:target-module-config-index", "GET"): API_READ,
    ("api:target-module-config-index", "POST"): API_CREATE,
    ("api:dataset-index", "GET"): API_LIST,
    ("api:dataset-index", "POST"): API_CREATE,
    ("api:dataset-sample", "POST"): API_CREATE,
    ("api:dataset-detail", "GET"): API_READ,
    ("api:dataset-versions", "GET"): API_READ,
    ("api:dataset-preview", "GET"): API_READ,
    ("api:dataset-import-again", "POST"): API_EDIT,
    ("api:training-run-index", "GET"): API_LIST,
    ("api:training-run-index", "POST"): API_CREATE,
    ("api:training-run-detail", "GET"): API_READ,
    ("api:training-run-cancel", "POST"): API_EDIT,
    ("api:training-run-resume", "POST"): API_EDIT,
    ("api:training-run-score", "POST"): API_EDIT,
    ("api:training-run-metrics", "GET"): API_READ,
    ("api:training-run-metric-series", "GET"): API_READ,
    ("api:training-run-evaluations", "GET"): API_READ,
    ("api:training-run-samples", "GET"): API_READ,
    ("api:training-run-events", "GET"): API_READ,
    ("api:training-run-log", "GET"): API_READ,
    ("api:forecast-index", "POST"): API_CREATE,
    ("api:study-index", "GET"): API_LIST,
    ("api:study-index", "POST"): API_CREATE,
    ("api:study-detail", "GET"): API_READ,
    ("api:study-export", "GET"): API_READ,
    ("api:study-cancel", "POST"): API_EDIT,
    ("api:study-seeds", "POST"): API_EDIT,
    ("api:study-arms", "POST"): API_EDIT,
    ("api:study-rates", "POST"): API_EDIT,
    ("api:study-score", "POST"): API_EDIT,
    ("api:adapter-index", "GET"): API_LIST,
    ("api:adapter-detail", "GET"): API_READ,
    ("api:adapter-stage", "POST"): API_MANAGE,
    ("api:adapter-download", "GET"): API_READ,
    ("api:job-index", "GET"): API_LIST,
    ("api:job-detail", "GET"): API_READ,
    ("api:job-detail", "PATCH"): API_MANAGE,
    ("api:job-events", "GET"): API_READ,
    ("api:job-cancel", "POST"): API_EDIT,
    ("api:job-move", "POST"): API_EDIT,
    ("api:worker-index", "GET"): API_LIST,
    ("api:worker-pause", "POST"): API_NOBODY,
    ("api:worker-resume", "POST"): API_NOBODY,
    ("api:compute-budget-detail", "GET"): API_LIST,
    ("api:compute-budget-detail", "PATCH"): API_DECIDE,
    ("api:membership-index", "GET"): API_LIST,
    ("api:membership-change", "POST"): API_MANAGE,
    ("api:membership-remove", "DELETE"): API_MANAGE,
    ("api:invitation-index", "GET"): API_LIST,
    ("api:invitation-index", "POST"): API_DECIDE,
    ("api:invitation-revoke", "DELETE"): API_MANAGE,
    ("api:token-index", "GET"): API_LIST,
    ("api:token-index", "POST"): API_CREATE,
    ("api:token-revoke", "DELETE"): API_EDIT,
}
# What stands in the query where an answer depends on it.
QUERIES = {
    "api:training-run-metrics": "?name=train/loss",
    "api:target-module-config-index": "?base_model={base_model}",
}
# What a route's address is made of, by its name.
OBJECTS = {
    "dataset": "dataset",
    "base-model": "base_model",
    "target-module-config": "target_module_config",
    "training-run": "run",
    "adapter": "adapter",
    "membership": "membership",
    "invitation": "invitation",
    "token": "token",
    "queue": "job",
    "worker": "worker",
    "evaluation": "run",
    "job": "job",
    "run": "run",
    "study": "study",
    "decision": "study",
    "share-link": "share_link",
    "saved-view": "saved_view",
    "share-link-create": "study",
}


@dataclass
class World:
    """One row of each kind in Support, and who asks for them."""

    people: dict[str, User | None]
    secrets: dict[str, str]
    rows: dict[str, int]
    invitation_secret: str
    share_secret: str
    project: Project


@pytest.fixture
def world(project: Project, other_project: Project, mara: User, ed: User, vera: User, otto: User) -> World:
    """Support with one of everything, and every caller."""
    mixed = make_user("mixed@example.org", project, Role.VIEWER)
    theirs = Project.objects.named("Mixed's own")
    theirs.admit(mixed, Role.MANAGER)
    root = User.objects.create_superuser("root@example.org")
    base_model = make_base_model(project)
    dataset = make_dataset(project, by=ed)
    run = make_run(project, dataset, base_model, by=ed)
    config = TargetModuleConfig.objects.compose(
        project=project, by=ed, name="Ours", selection=Selection(("o_proj",))
    )
    node = WorkerNode.objects.create(name="gpu0@host", queue="gpu", host="host", pid=1)
    invitation, secret = Invitation.issue(project, "new@example.org", Role.VIEWER, mara)
    study = make_study(project, dataset, base_model, by=ed)
    link, share_secret = ShareLink.issue(study, mara, days=7)
    homes = {vera: project, ed: project, mara: project, otto: other_project, mixed: theirs, root: project}
    issued = {user: ApiToken.issue(home, user, "matrix")[1] for user, home in homes.items()}
    people = dict(zip(CALLERS, (None, vera, ed, mara, otto, mixed, root), strict=True))
    rows = {
        "dataset": dataset.pk,
        "base_model": base_model.pk,
        "run": run.pk,
        "target_module_config": config.pk,
        "adapter": published(run).pk,
        "membership": Membership.objects.get(user=vera).pk,
        "invitation": invitation.pk,
        "token": ApiToken.objects.get(user=ed).pk,
        "job": run.job_id or 0,
        "worker": node.pk,
        "study": study.pk,
        "share_link": link.pk,
        "saved_view": SavedView.objects.create(project=project, name="Mine", query="runs=1").pk,
    }
    secrets = {name: issued[user] for name, user in people.items() if user}
    return World(people, secrets, rows, secret, share_secret, project)


def published(run: TrainingRun) -> Adapter:
    """An adapter of the run with a folder that can be downloaded."""
    folder = settings.DATA_DIR / "adapters" / "matrix"
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"adapter_config.json": '{"r": 4}', "adapter_model.safetensors": "{}", "run.json": "{}"}
    for name, text in contents.items():
        (folder / name).write_text(text)
    return Adapter.objects.publish(run, "matrix", dict.fromkeys(contents, "ef" * 32), 2)


@dataclass(frozen=True)
class Route:
    """One entry of the URL table."""

    name: str
    parameters: tuple[str, ...]

    def address(self, world: World) -> str:
        """The route's address for the rows of Support."""
        values = {name: self.value(name, world) for name in self.parameters}
        return reverse(self.name, kwargs=values) + QUERIES.get(self.name, "").format(**world.rows)

    def value(self, parameter: str, world: World) -> Any:
        """What stands in the address for one parameter."""
        if parameter in ("uidb36", "key"):
            return "1" if parameter == "uidb36" else "abc-def"
        if parameter == "secret":
            return world.share_secret if self.name == "share-link-open" else world.invitation_secret
        short = self.name.rpartition(":")[2]
        kind = max((name for name in OBJECTS if short.startswith(name)), key=len)
        return world.rows[OBJECTS[kind]]

    @property
    def is_api(self) -> bool:
        """Whether it is called with a token."""
        return self.name.startswith("api:")


@cache
def routes() -> tuple[Route, ...]:
    """Every route but Django's administration, which has its own test."""
    # The API has one entry per operation of an address; asking it for its methods finds them all.
    return tuple(dict.fromkeys(walk(get_resolver().url_patterns, "")))


def walk(patterns: list[Any], namespace: str) -> Iterator[Route]:
    """The routes below a list of patterns."""
    for entry in patterns:
        if isinstance(entry, URLResolver):
            inner = f"{namespace}{entry.namespace}:" if entry.namespace else namespace
            if entry.namespace != "admin":
                yield from walk(entry.url_patterns, inner)
        elif isinstance(entry, URLPattern):
            assert entry.name, f"{entry.pattern} has no name"
            yield Route(f"{namespace}{entry.name}", tuple(entry.pattern.regex.groupindex))


def client_for(world: World, caller: str, route: Route) -> Client:
    """A client that calls as `caller`: by session for pages, by token for the API."""
    client = Client(raise_request_exception=False)
    person = world.people[caller]
    if person is None:
        return client
    if route.is_api:
        client.defaults["HTTP_AUTHORIZATION"] = f"Bearer {world.secrets[caller]}"
        return client
    client.force_login(person)
    own = person.projects().exclude(pk=world.project.pk).first()
    if caller == "mixed" and own:
        session = client.session
        session["project"] = own.pk
        session.save()
    return client


def body_for(route: Route, world: World) -> dict[str, Any]:
    """Only what a route needs to find the row it is about; everything else is left out."""
    return {"project": world.project.pk} if route.name == "project-open" else {}


def ask(client: Client, route: Route, method: str, world: World) -> HttpResponseBase:
    """One request with an almost empty body."""
    address, body = route.address(world), body_for(route, world)
    if route.is_api and method != "GET":
        return client.generic(method, address, json.dumps(body), content_type="application/json")
    if method == "POST":
        return client.post(address, body)
    return client.generic(method, address)


def methods_of(route: Route, world: World) -> set[str]:
    """What a route answers to, from its reply to a method that nobody has."""
    answer = ask(client_for(world, "manager", route), route, "LINK", world)
    if answer.status_code != 405:
        return {"GET"}
    return set(answer.headers["Allow"].split(", ")) - {"HEAD", "OPTIONS", "PUT"} or {"GET"}


def outcome(answer: HttpResponseBase) -> str:
    """One of the letters of RULES."""
    status = answer.status_code
    assert status < 500, getattr(answer, "content", b"")[:2000]
    asked = status == 302 and answer.headers["Location"].startswith("/sign-in/?next=")
    if status == 401 or asked:
        return "?"
    return {403: "-", 404: "0"}.get(status, "+")


@pytest.mark.parametrize("route", routes(), ids=lambda route: route.name)
def test_every_route_lets_in_whom_it_should(route: Route, world: World) -> None:
    for method in sorted(methods_of(route, world)):
        rule = RULES.get((route.name, method))
        assert rule, f"Say in RULES who may {method} {route.name}."
        found = {}
        for caller in CALLERS:
            with transaction.atomic():
                answer = ask(client_for(world, caller, route), route, method, world)
                found[caller] = outcome(answer)
                transaction.set_rollback(True)
        assert found == dict(zip(CALLERS, rule, strict=True)), f"{method} {route.name}"


def test_no_rule_is_about_a_route_that_is_gone() -> None:
    assert {name for name, _method in RULES} - {route.name for route in routes()} == set()


def test_only_views_marked_as_public_open_without_sign_in() -> None:
    by_rule = {name for (name, _method), rule in RULES.items() if rule[0] != "?"}
    patterns = [entry for entry in get_resolver().url_patterns if isinstance(entry, URLPattern)]
    marked = {entry.name for entry in patterns if not getattr(entry.callback, "login_required", True)}
    assert marked == by_rule


@pytest.mark.parametrize(
    "route", [route for route in routes() if not route.is_api], ids=lambda route: route.name
)
def test_every_unsafe_request_needs_the_csrf_token(route: Route, world: World) -> None:
    for method in methods_of(route, world) - {"GET"}:
        client = client_for(world, "manager", route)
        client.handler.enforce_csrf_checks = True
        assert ask(client, route, method, world).status_code == 403


@pytest.mark.parametrize("route", [route for route in routes() if route.is_api], ids=lambda route: route.name)
def test_no_api_call_works_by_session(route: Route, world: World) -> None:
    client = Client()
    client.force_login(world.people["manager"])  # type: ignore[arg-type]
    documentation = ("api:openapi-json", "api:openapi-view")
    for method in methods_of(route, world):
        expected = 200 if route.name in documentation else 401
        assert ask(client, route, method, world).status_code == expected


@pytest.mark.parametrize("route", [route for route in routes() if route.is_api], ids=lambda route: route.name)
def test_a_token_that_reads_changes_nothing(route: Route, world: World) -> None:
    reading = ApiToken.issue(world.project, world.people["manager"], "reader", scope=ApiToken.Scope.READ)[1]  # type: ignore[arg-type]
    client = Client(headers={"Authorization": f"Bearer {reading}"})
    for method in methods_of(route, world) - {"GET"}:
        assert ask(client, route, method, world).status_code == 403


@pytest.mark.parametrize("caller", ["anonymous", "manager"])
def test_the_administration_is_for_superusers(world: World, caller: str) -> None:
    page = Route("admin:index", ())
    client = client_for(world, caller, page)
    for path in ("", "login/", "dashboard/user/", "dashboard/user/add/", "dashboard/project/", "auth/group/"):
        assert client.get(f"/admin/{path}").status_code in (302, 403)
        assert client.post(f"/admin/{path}").status_code in (302, 403)


def test_a_superuser_has_the_administration(world: World) -> None:
    client = client_for(world, "root", Route("admin:index", ()))
    for path in ("", "dashboard/user/", "dashboard/user/add/", "dashboard/project/"):
        assert client.get(f"/admin/{path}").status_code == 200


def test_rows_that_do_not_exist_look_like_foreign_ones(world: World, otto: User) -> None:
    Dataset.objects.all()
    client = Client()
    client.force_login(otto)
    foreign = client.get(reverse("dataset-detail", args=[world.rows["dataset"]]))
    missing = client.get(reverse("dataset-detail", args=[987_654]))
    assert (foreign.status_code, missing.status_code) == (404, 404)
