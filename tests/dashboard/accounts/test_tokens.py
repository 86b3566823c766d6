"""API tokens on their page: creation, list, revocation. The API's tests cover other users' tokens."""

from __future__ import annotations

import json
import re
import shlex
from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dashboard.models import Adapter, ApiToken, BaseModel, Project, User

NEW, LIST = "/settings/tokens/new/", "/settings/tokens/"
VALUES = {"name": "nightly upload", "scope": "write", "lifetime": "90"}


def test_secret_is_shown_once_and_works(client: Client, ed: User, project: Project) -> None:
    client.force_login(ed)
    answer = client.post(NEW, VALUES)
    assert answer.status_code == 201
    assert "no-store" in answer.headers["Cache-Control"]
    found = re.search(r"gw_[\w-]{40,}", answer.content.decode())
    assert found
    token = ApiToken.objects.authenticate(found[0])
    assert token is not None
    assert (token.user, token.project, token.scope) == (ed, project, ApiToken.Scope.WRITE)
    page = client.get(LIST).content.decode()
    assert token.prefix in page
    assert found[0] not in page
    assert found[0] not in str(ApiToken.objects.values().get())


@pytest.mark.parametrize(("lifetime", "days"), [("30", 30), ("365", 365)])
def test_token_expires(client: Client, ed: User, lifetime: str, days: int) -> None:
    client.force_login(ed)
    client.post(NEW, {**VALUES, "lifetime": lifetime})
    expires = ApiToken.objects.get().expires_at
    assert expires is not None
    assert abs(expires - timezone.now() - timedelta(days=days)) < timedelta(minutes=1)


def test_token_without_expiry(client: Client, ed: User) -> None:
    client.force_login(ed)
    client.post(NEW, {**VALUES, "lifetime": "never"})
    assert ApiToken.objects.get().expires_at is None


def test_viewer_gets_read_scope_only(client: Client, vera: User) -> None:
    client.force_login(vera)
    assert client.post(NEW, VALUES).status_code == 422
    assert client.post(NEW, {**VALUES, "scope": "read"}).status_code == 201
    assert ApiToken.objects.get().scope == ApiToken.Scope.READ


@pytest.mark.parametrize("change", [{"name": "x" * 101}, {"scope": "admin"}, {"lifetime": "7"}])
def test_bad_input_is_refused(client: Client, ed: User, change: dict[str, str]) -> None:
    client.force_login(ed)
    answer = client.post(NEW, {**VALUES, **change})
    assert answer.status_code == 422
    assert b"error-summary" in answer.content
    assert not ApiToken.objects.exists()


def test_form_cannot_choose_owner_or_project(
    client: Client, ed: User, mara: User, project: Project, other_project: Project
) -> None:
    client.force_login(ed)
    client.post(NEW, {**VALUES, "user": str(mara.pk), "project": str(other_project.pk)})
    token = ApiToken.objects.get()
    assert (token.user, token.project) == (ed, project)


def test_list_shows_others_tokens_to_managers_only(
    client: Client, ed: User, mara: User, project: Project, other_project: Project
) -> None:
    ApiToken.issue(project, ed, "nightly upload")
    ApiToken.issue(project, mara, "board report")
    ApiToken.issue(other_project, ed, "elsewhere token")
    client.force_login(mara)
    page = client.get(LIST).content
    assert b"nightly upload" in page
    assert b"elsewhere token" not in page
    client.force_login(ed)
    assert b"board report" not in client.get(LIST).content


def test_revoked_token_stops_working(client: Client, mara: User, ed: User, project: Project) -> None:
    token, _secret = ApiToken.issue(project, ed, "nightly upload")
    client.force_login(mara)
    client.post(reverse("token-revoke", args=[token.pk]))
    assert not ApiToken.objects.working().exists()
    assert token.prefix.encode() not in client.get(LIST).content


def test_snippets_have_the_names_of_the_project(client: Client, ed: User, adapter: Adapter) -> None:
    client.force_login(ed)
    page = client.get(LIST).context
    codes = {snippet.title: snippet.code for snippet in page["snippets"]}
    assert set(codes) == {"Python", "JavaScript", "curl"}
    for code in codes.values():
        assert "http://testserver/v1" in code
        assert "example/tiny" in code
        assert adapter.openai_name in code
    compile(codes["Python"], "snippet", "exec")
    assert f"file-{adapter.run.dataset_version_id}" in codes["curl"]


def test_snippets_of_an_empty_project_work_as_well(client: Client, ed: User) -> None:
    client.force_login(ed)
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in client.get(LIST).content.decode()


def test_snippets_quote_odd_names(client: Client, ed: User, base_model: BaseModel) -> None:
    BaseModel.objects.filter(pk=base_model.pk).update(hub_id="a'; rm -rf / #\"\\")
    client.force_login(ed)
    codes = {snippet.title: snippet.code for snippet in client.get(LIST).context["snippets"]}
    compile(codes["Python"], "snippet", "exec")
    call = shlex.split(codes["curl"].split("\n\n")[1])
    assert json.loads(call[call.index("--json") + 1])["model"] == "a'; rm -rf / #\"\\"
