"""API access: tokens, rate limits, unknown addresses and methods, and the OpenAPI document."""

from __future__ import annotations

import json
import re
import secrets
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest.mock import Mock

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from dashboard.api import access
from dashboard.models import ApiToken, Job, Project, User
from dashboard.models.accounts.project import ProjectQuerySet
from dashboard.models.jobs.job_queryset import JobQuerySet
from tests.dashboard.refusals import refusal

ME = "/api/v1/me"


def client_of(secret: str) -> Client:
    return Client(headers={"Authorization": f"Bearer {secret}"})


def test_token_gets_its_project_owner_role_and_scope(api: Client, project: Project, ed: User) -> None:
    answer = api.get(ME).json()
    assert answer["project"] == {"id": project.pk, "name": "Support"}
    assert (answer["email"], answer["role"], answer["scope"]) == (ed.email, "editor", "write")
    assert answer["expires_at"] is None
    short = client_of(ApiToken.issue(project, ed, "short", days=30)[1])
    assert short.get(ME).json()["expires_at"].endswith("Z"), "ISO 8601 in UTC"
    assert api.get(ME).headers["Cache-Control"] == "private, no-store"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer gw_wrong", "Basic Zm9vOmJhcg==", "gw_wrong"])
def test_missing_or_wrong_token_is_refused(project: Project, header: str) -> None:
    for path in (ME, "/api/v1/docs", "/api/v1/nothing"):
        answer = Client(headers={"Authorization": header}).get(path)
        refusal(answer, 401)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.headers["Cache-Control"] == "private, no-store"


@pytest.mark.parametrize("field", ["expires_at", "revoked_at"])
def test_expired_or_revoked_token_is_refused(project: Project, ed: User, field: str) -> None:
    token, secret = ApiToken.issue(project, ed, "old", days=1)
    ApiToken.objects.filter(pk=token.pk).update(**{field: timezone.now()})
    refusal(client_of(secret).get(ME), 401)


@pytest.mark.parametrize("path", ["nothing", "runs/", "runs/abc", "runs/1/nothing", ""])
def test_unknown_address_is_refused(api: Client, path: str) -> None:
    refusal(api.get(f"/api/v1/{path}"), 404)
    refusal(api.post(f"/api/v1/{path}", {}, content_type="application/json"), 404)


def test_id_beyond_the_database_is_not_found(api: Client) -> None:
    refusal(api.get(f"/api/v1/runs/{10**40}"), 404)


def test_unsupported_method_is_refused(api: Client) -> None:
    answer = api.put("/api/v1/runs")
    assert refusal(answer, 405)["code"] == "method_not_allowed"
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}


def test_head_answers_as_get_without_body(api: Client, settings: Settings) -> None:
    whole, head = api.get(ME), api.head(ME)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == whole.headers["Content-Type"]
    refusal(api.get("/api/v1/runs/999"), 404)
    assert api.head("/api/v1/runs/999").status_code == 404
    assert api.head("/api/v1/forecast").status_code == 405
    settings.API_READS_PER_MINUTE = 1
    assert [api.head(ME).status_code for _call in range(2)][-1] == 429


def test_options_lists_the_methods(api: Client) -> None:
    answer = api.options("/api/v1/forecast")
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["Allow"] == "OPTIONS, POST"
    assert Client().options("/api/v1/forecast").status_code == 401


@pytest.mark.parametrize("path", ["jobs/1/cancel", "studies/1/cancel", "datasets/sample"])
def test_unexpected_body_is_refused(project: Project, mara: User, path: str) -> None:
    manager = client_of(ApiToken.issue(project, mara, "tests")[1])
    answer = manager.post(f"/api/v1/{path}", {"keep": "adapter"}, content_type="application/json")
    assert refusal(answer, 422)["field"] == "keep"


def test_reads_are_limited(api: Client, settings: Settings) -> None:
    settings.API_READS_PER_MINUTE = 3
    assert [api.get(ME).status_code for _call in range(3)] == [200] * 3
    answer = api.get(ME)
    refusal(answer, 429)
    assert 1 <= int(answer.headers["Retry-After"]) <= 60


def test_calls_of_all_web_processes_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access.time, "time", lambda: 1000.5)
    name = secrets.token_hex()
    with ProcessPoolExecutor(1, get_context("fork")) as other:
        assert [other.submit(access.count_call, name, 3).result() for _call in range(2)] == [0, 0]
    assert [access.count_call(name, 3) for _call in range(2)] == [0, 59.5]
    monkeypatch.setattr(access.time, "time", lambda: 1060.0)
    assert access.count_call(name, 3) == 0


def test_writes_have_their_own_limit(api: Client, settings: Settings) -> None:
    settings.API_WRITES_PER_MINUTE = 2
    calls = [api.post("/api/v1/runs", "{}", content_type="application/json") for _call in range(3)]
    assert [call.status_code for call in calls] == [422, 422, 429]
    assert api.get(ME).status_code == 200


def test_limit_is_per_token(api: Client, project: Project, ed: User, settings: Settings) -> None:
    settings.API_READS_PER_MINUTE = 1
    api.get(ME)
    refusal(api.get(ME), 429)
    assert client_of(ApiToken.issue(project, ed, "second")[1]).get(ME).status_code == 200


def test_large_body_is_refused(api: Client) -> None:
    answer = api.post("/api/v1/runs", " " * (1024**2 + 1), content_type="application/json")
    assert refusal(answer, 413)["code"] == "too_large"


def test_too_many_fields_are_refused(api: Client) -> None:
    refusal(api.post("/api/v1/datasets", {f"field{number}": "x" for number in range(1001)}), 413)


def test_broken_multipart_body_is_refused(api: Client) -> None:
    answer = api.post("/api/v1/datasets", b"--x", content_type="multipart/form-data; boundary=")
    refusal(answer, 400)


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for part in value.values() for found in references(part)]
    return [found for part in value for found in references(part)] if isinstance(value, list) else []


def test_openapi_document_is_complete(api: Client) -> None:
    document = json.loads(api.get(reverse("api:openapi-json")).content)
    assert document["openapi"].startswith("3.1")
    operations = [one for path in document["paths"].values() for one in path.values()]
    ids = [one["operationId"] for one in operations]
    assert len(ids) == len(set(ids)) >= 30
    assert "training-run-create" in ids
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= known
    for path, methods in document["paths"].items():
        for operation in methods.values():
            named = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            assert named == ({"pk"} if "{pk}" in path else set())
            assert "401" in {str(status) for status in operation["responses"]}
            assert operation["security"]


def test_documentation_is_open_to_sessions_and_tokens(client: Client, api: Client, ed: User) -> None:
    client.force_login(ed)
    assert api.get(reverse("api:openapi-view")).status_code == 200
    page = client.get(reverse("api:openapi-view"), {"part": "Runs"})
    assert page.status_code == 200
    assert client.get(reverse("api:openapi-json")).status_code == 200
    text = page.content.decode()
    assert "POST /api/v1/runs" in text
    assert "hyperparameters.learning_rate" in text
    assert " style=" not in text


def test_every_operation_is_documented_in_a_part(client: Client, ed: User) -> None:
    client.force_login(ed)
    address = reverse("api:openapi-view")
    parts = re.findall(r'href="\?part=([^"]+)"', client.get(address).content.decode())
    texts = [client.get(f"{address}?part={part}").content.decode() for part in parts]
    paths = client.get(reverse("api:openapi-json")).json()["paths"]
    for path, methods in paths.items():
        for method in methods:
            summary = f"<code>{method.upper()} {path}</code>"
            assert sum(summary in text for text in texts) == 1, summary


def test_concurrent_equal_requests_start_one_job(
    api: Client, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second request reads before the first has written, and violates the constraint.
    body = {"file": SimpleUploadedFile("rows.jsonl", b'{"text": "x"}\n'), "name": "Tickets"}
    first = api.post("/api/v1/datasets", body, headers={"Idempotency-Key": "k"})
    looks = iter([None, Job.objects.get()])
    monkeypatch.setattr(JobQuerySet, "find_by_idempotency_key", lambda *_args: next(looks))
    body["file"].seek(0)  # type: ignore[attr-defined]
    second = api.post("/api/v1/datasets", body, headers={"Idempotency-Key": "k"})
    assert (second.status_code, second.json()) == (202, first.json())
    assert Job.objects.count() == 1


def test_internal_error_has_the_error_format(
    token: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Mock(side_effect=RuntimeError("secret detail"))
    monkeypatch.setattr(ProjectQuerySet, "visible_to", failing)
    client = Client(raise_request_exception=False, headers={"Authorization": f"Bearer {token}"})
    error = refusal(client.get("/api/v1/adapters/1"), 500)
    assert error["code"] == "internal_error"
    assert "secret" not in error["message"]
