"""Who may call the API, how often, and what it says at addresses and methods that it does not have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from dashboard.models import ApiToken, Job, Project, User
from dashboard.models.accounts.project import ProjectQuerySet
from dashboard.models.jobs.job_queue import JobQuerySet

ME = "/api/v1/me"


def client_of(secret: str) -> Client:
    return Client(headers={"Authorization": f"Bearer {secret}"})


@pytest.fixture
def api(token: str) -> Client:
    return client_of(token)


def refusal(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.content
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"code", "message", "field"}
    assert error["message"].endswith((".", "…"))
    return error


def test_a_token_learns_what_it_is_good_for(api: Client, project: Project, ed: User) -> None:
    answer = api.get(ME).json()
    assert answer["project"] == {"id": project.pk, "name": "Support"}
    assert (answer["email"], answer["role"], answer["scope"]) == (ed.email, "editor", "write")
    assert answer["expires_at"] is None


def test_times_are_iso_8601_in_utc(project: Project, ed: User) -> None:
    secret = ApiToken.issue(project, ed, "short", days=30)[1]
    assert client_of(secret).get(ME).json()["expires_at"].endswith("Z")


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer gw_wrong", "Basic Zm9vOmJhcg==", "gw_wrong"])
def test_it_refuses_a_stranger(project: Project, header: str) -> None:
    for path in (ME, "/api/v1/runs", "/api/v1/docs", "/api/v1/openapi.json", "/api/v1/nothing"):
        refusal(Client(headers={"Authorization": header}).get(path), 401)


def test_it_refuses_an_expired_token(project: Project, ed: User) -> None:
    token, secret = ApiToken.issue(project, ed, "old", days=1)
    ApiToken.objects.filter(pk=token.pk).update(expires_at=timezone.now())
    refusal(client_of(secret).get(ME), 401)


def test_it_refuses_a_revoked_token(project: Project, ed: User) -> None:
    token, secret = ApiToken.issue(project, ed, "gone")
    token.revoke()
    refusal(client_of(secret).get(ME), 401)


def test_a_session_is_no_token(client: Client, ed: User) -> None:
    client.force_login(ed)
    refusal(client.get(ME), 401)


@pytest.mark.parametrize("path", ["nothing", "runs/", "runs/abc", "runs/-1", "runs/1/nothing", "", "me/x"])
def test_an_unknown_address_is_refused_in_the_same_shape(api: Client, path: str) -> None:
    refusal(api.get(f"/api/v1/{path}"), 404)
    refusal(api.post(f"/api/v1/{path}", {}, content_type="application/json"), 404)


def test_an_id_that_no_database_can_hold_is_not_found(api: Client) -> None:
    refusal(api.get(f"/api/v1/runs/{10**40}"), 404)


@pytest.mark.parametrize("method", ["put", "patch", "delete"])
def test_another_method_is_refused_in_the_same_shape(api: Client, method: str) -> None:
    answer = getattr(api, method)("/api/v1/runs")
    assert refusal(answer, 405)["code"] == "method_not_allowed"
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}


def test_head_answers_as_get_without_the_body(api: Client, settings: Settings) -> None:
    whole, head = api.get(ME), api.head(ME)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == whole.headers["Content-Type"]
    refusal(api.get("/api/v1/runs/999"), 404)
    assert api.head("/api/v1/runs/999").status_code == 404
    assert api.head("/api/v1/forecast").status_code == 405
    settings.API_READS_PER_MINUTE = 1
    assert client_statuses(api.head, ME, 2)[-1] == 429


def client_statuses(call: Any, path: str, times: int) -> list[int]:
    return [call(path).status_code for _call in range(times)]


def test_options_names_the_methods(api: Client) -> None:
    answer = api.options("/api/v1/forecast")
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["Allow"] == "OPTIONS, POST"
    assert Client().options("/api/v1/forecast").status_code == 401


def test_a_stranger_is_told_how_to_come_in(project: Project) -> None:
    assert Client().get(ME).headers["WWW-Authenticate"] == "Bearer"


def test_nothing_in_between_keeps_an_answer(api: Client) -> None:
    assert api.get(ME).headers["Cache-Control"] == "private, no-store"
    assert Client().get(ME).headers["Cache-Control"] == "private, no-store"


@pytest.mark.parametrize(
    "path", ["jobs/1/cancel", "runs/1/resume", "datasets/sample", "base-models/1/inspect"]
)
def test_a_call_without_a_body_refuses_keys_in_one(project: Project, mara: User, path: str) -> None:
    manager = client_of(ApiToken.issue(project, mara, "tests")[1])
    answer = manager.post(f"/api/v1/{path}", {"keep": "adapter"}, content_type="application/json")
    assert refusal(answer, 422)["field"] == "keep"


def test_reads_have_a_pace(api: Client, settings: Settings) -> None:
    settings.API_READS_PER_MINUTE = 3
    assert [api.get(ME).status_code for _call in range(3)] == [200] * 3
    answer = api.get(ME)
    refusal(answer, 429)
    assert 1 <= int(answer.headers["Retry-After"]) <= 60


def test_writes_have_a_pace_of_their_own(api: Client, settings: Settings) -> None:
    settings.API_WRITES_PER_MINUTE = 2
    calls = [api.post("/api/v1/runs", "{}", content_type="application/json") for _call in range(3)]
    assert [call.status_code for call in calls] == [422, 422, 429]
    assert api.get(ME).status_code == 200


def test_a_pace_is_per_token(api: Client, project: Project, ed: User, settings: Settings) -> None:
    settings.API_READS_PER_MINUTE = 1
    api.get(ME)
    refusal(api.get(ME), 429)
    assert client_of(ApiToken.issue(project, ed, "second")[1]).get(ME).status_code == 200


def test_a_body_over_the_limit_is_too_large(api: Client) -> None:
    answer = api.post("/api/v1/runs", " " * (1024**2 + 1), content_type="application/json")
    assert refusal(answer, 413)["code"] == "too_large"


def test_too_many_fields_are_too_large(api: Client) -> None:
    refusal(api.post("/api/v1/datasets", {f"field{number}": "x" for number in range(1001)}), 413)


def test_a_broken_multipart_body_is_refused(api: Client) -> None:
    answer = api.post("/api/v1/datasets", b"--x", content_type="multipart/form-data; boundary=")
    refusal(answer, 422)


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for part in value.values() for found in references(part)]
    return [found for part in value for found in references(part)] if isinstance(value, list) else []


def test_it_describes_itself_as_openapi_3_1(api: Client) -> None:
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


def test_a_signed_in_person_may_read_the_documentation(client: Client, ed: User) -> None:
    client.force_login(ed)
    page = client.get(reverse("api:openapi-view"))
    assert page.status_code == 200
    assert client.get(reverse("api:openapi-json")).status_code == 200
    text = page.content.decode()
    assert "POST /api/v1/runs" in text
    assert "hyperparameters.learning_rate" in text
    assert " style=" not in text


def test_a_program_may_read_the_documentation_too(api: Client) -> None:
    assert api.get(reverse("api:openapi-view")).status_code == 200


def test_two_equal_calls_at_one_moment_start_one_job(
    api: Client, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call looks before the first has written, and meets the constraint."""
    body = {"file": SimpleUploadedFile("rows.jsonl", b'{"text": "x"}\n'), "name": "Tickets"}
    first = api.post("/api/v1/datasets", body, headers={"Idempotency-Key": "k"})
    looks = iter([None, Job.objects.get()])
    monkeypatch.setattr(JobQuerySet, "find_by_idempotency_key", lambda *_args: next(looks))
    body["file"].seek(0)  # type: ignore[attr-defined]
    second = api.post("/api/v1/datasets", body, headers={"Idempotency-Key": "k"})
    assert (second.status_code, second.json()) == (202, first.json())
    assert Job.objects.count() == 1


def test_a_fault_of_ours_is_said_in_the_same_shape(
    token: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(ProjectQuerySet, "visible_to", broken)
    client = Client(raise_request_exception=False, headers={"Authorization": f"Bearer {token}"})
    error = refusal(client.get("/api/v1/runs"), 500)
    assert error["code"] == "internal_error"
    assert "secret" not in error["message"]
