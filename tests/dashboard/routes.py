"""Every route with its methods, a world of one object of each kind, and a client of every caller.

Routes come from the URL table and their methods from the Allow header, so that no route can be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.conf import settings
from django.http import HttpResponseBase
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from dashboard.models import (
    Adapter,
    ApiToken,
    HubPush,
    Invitation,
    Membership,
    Project,
    PromptSet,
    Role,
    SavedView,
    ShareLink,
    TargetModuleConfig,
    TrainingRun,
    TryOutLink,
    User,
    Webhook,
    WorkerNode,
)
from tests.conftest import make_base_model, make_dataset, make_export, make_run, make_user
from tests.dashboard.route_rules import CALLERS, OBJECTS, OPENAI_IDS, QUERIES
from tests.dashboard.studies.factories import make_study
from workers.target_modules.custom import Selection


@dataclass
class World:
    """One object of each kind in Support, and the callers."""

    project: Project
    users: dict[str, User]
    tokens: dict[str, str]
    sessions: dict[str, str]
    objects: dict[str, int]
    invitation_secret: str
    share_secret: str
    try_out_secret: str


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
    adapter = publish_adapter(run)
    try_out, try_out_secret = TryOutLink.issue(
        project, manager, base_model, [None, adapter], days=7, most_prompts=50, max_tokens=20
    )
    prompt_set = PromptSet.objects.save_prompt(project, editor, "Greetings", "", "Hello")
    objects = {
        "dataset": dataset.pk,
        "dataset_version": run.dataset_version_id,
        "base_model": base_model.pk,
        "run": run.pk,
        "target_module_config": config.pk,
        "adapter": adapter.pk,
        "export": make_export(adapter, editor).pk,
        "push": HubPush.objects.start(
            adapter, manager, format="adapter", repository="team/triage", token="hf_1"
        ).pk,
        "membership": Membership.objects.get(user=viewer).pk,
        "invitation": invitation.pk,
        "token": ApiToken.objects.get(user=editor).pk,
        "job": run.job_id or 0,
        "worker": WorkerNode.objects.create(name="gpu0@host", queue="gpu", host="host", pid=1).pk,
        "study": study.pk,
        "share_link": link.pk,
        "try_out_link": try_out.pk,
        "prompt_set": prompt_set.pk,
        "prompt": prompt_set.prompts.get().pk,
        "webhook": Webhook.objects.create(project=project, url="https://hooks.example.org/").pk,
        "saved_view": SavedView.objects.create(project=project, name="Mine", query="runs=1").pk,
    }
    sessions = {name: sign_in(user, own if name == "mixed" else None) for name, user in users.items()}
    return World(project, users, tokens, sessions, objects, invitation_secret, share_secret, try_out_secret)


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
        return self.name.startswith(("api:", "openai:"))

    def address(self, world: World) -> str:
        """Return the address for the objects of Support."""
        values = {name: self.value(name, world) for name in self.parameters}
        return reverse(self.name, kwargs=values) + QUERIES.get(self.name, "").format(**world.objects)

    def value(self, parameter: str, world: World) -> Any:
        if parameter in ("uidb36", "key"):
            return "1" if parameter == "uidb36" else "abc-def"
        if parameter == "secret":
            secrets = {"share-link-open": world.share_secret, "invitation-accept": world.invitation_secret}
            return secrets.get(self.name, world.try_out_secret)
        if parameter == "prompt":
            return world.objects[parameter]
        if parameter in OPENAI_IDS:
            return OPENAI_IDS[parameter].format(**world.objects)
        short = self.name.rpartition(":")[2]
        prefix = max((name for name in OBJECTS if short.startswith(name)), key=len)
        return world.objects[OBJECTS[prefix]]


@cache
def routes() -> tuple[Route, ...]:
    """Return every route but Django's admin, which has its own test."""
    # The API has one entry per operation; the Allow header lists the methods of all of them.
    return tuple(dict.fromkeys(walk(get_resolver().url_patterns, "")))


def by_name(route: Route) -> str:
    return route.name


def walk(patterns: list[Any], namespace: str) -> Iterator[Route]:
    for entry in patterns:
        if isinstance(entry, URLResolver):
            if entry.namespace != "admin":
                inner = f"{namespace}{entry.namespace}:" if entry.namespace else namespace
                yield from walk(entry.url_patterns, inner)
        elif isinstance(entry, URLPattern):
            assert entry.name, f"{entry.pattern} has no name"
            yield Route(f"{namespace}{entry.name}", tuple(entry.pattern.regex.groupindex))


def client_for(world: World, caller: str, route: Route) -> Client:
    """Return a client that is signed in, or that sends the caller's token to the API."""
    if caller == "anonymous":
        return Client()
    if route.is_api:
        return Client(headers={"Authorization": f"Bearer {world.tokens[caller]}"})
    return client_of(world.sessions[caller])


def client_of(session: str) -> Client:
    client = Client()
    client.cookies[settings.SESSION_COOKIE_NAME] = session
    return client


def sign_in(user: User, project: Project | None = None) -> str:
    """Return the key of a session of the user, who may have chosen a project."""
    client = Client()
    client.force_login(user)
    if project:
        session = client.session
        session["project"] = project.pk
        session.save()
    return str(client.cookies[settings.SESSION_COOKIE_NAME].value)


def send(client: Client, route: Route, method: str, world: World) -> HttpResponseBase:
    """Send a request with an almost empty body."""
    address = route.address(world)
    body = {"project": world.project.pk} if route.name == "project-open" else {}
    if route.is_api and method != "GET":
        return client.generic(method, address, json.dumps(body), content_type="application/json")
    return client.post(address, body) if method == "POST" else client.generic(method, address)


@cache
def allowed_methods(route: Route, address: str, token: str, session: str) -> frozenset[str]:
    """Return the methods from the answer to an unknown one."""
    client = Client(headers={"Authorization": f"Bearer {token}"}) if route.is_api else client_of(session)
    answer = client.generic("LINK", address)
    listed = set(answer.headers["Allow"].split(", ")) if answer.status_code == 405 else set()
    return frozenset(listed - {"HEAD", "OPTIONS", "PUT"} or {"GET"})


def methods_of(route: Route, world: World) -> list[str]:
    address = route.address(world)
    return sorted(allowed_methods(route, address, world.tokens["manager"], world.sessions["manager"]))
