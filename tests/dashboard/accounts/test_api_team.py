"""Members, invitations and tokens over the API."""

from __future__ import annotations

import pytest
from django.test import Client

from dashboard.models import ApiToken, Invitation, Membership, Project, Role, User

JSON = "application/json"


def caller(project: Project, user: User, **options: object) -> Client:
    secret = ApiToken.issue(project, user, "team", **options)[1]  # type: ignore[arg-type]
    return Client(headers={"Authorization": f"Bearer {secret}"})


@pytest.fixture
def manager(project: Project, mara: User) -> Client:
    return caller(project, mara)


def test_it_lists_members(manager: Client, ed: User, otto: User) -> None:
    members = manager.get("/api/v1/members").json()["data"]
    assert {(one["email"], one["role"]) for one in members} == {
        ("mara@example.org", "manager"),
        ("ed@example.org", "editor"),
    }


def test_it_changes_a_role_and_removes_a_member(manager: Client, ed: User) -> None:
    member = Membership.objects.get(user=ed)
    address = f"/api/v1/members/{member.pk}"
    assert manager.post(f"{address}/role", {"role": "viewer"}, content_type=JSON).json()["role"] == "viewer"
    assert manager.post(f"{address}/role", {"role": "owner"}, content_type=JSON).status_code == 422
    assert manager.delete(address).status_code == 204
    assert not Membership.objects.filter(user=ed).exists()


def test_it_keeps_the_last_manager(manager: Client, mara: User) -> None:
    address = f"/api/v1/members/{Membership.objects.get(user=mara).pk}"
    assert manager.delete(address).status_code == 409
    assert manager.post(f"{address}/role", {"role": "viewer"}, content_type=JSON).status_code == 409
    assert Membership.objects.get(user=mara).role == Role.MANAGER


def test_it_refuses_an_editor_and_hides_members_from_an_outsider(
    project: Project, other_project: Project, ed: User, vera: User, otto: User
) -> None:
    address = f"/api/v1/members/{Membership.objects.get(user=vera).pk}"
    assert caller(project, ed).delete(address).status_code == 403
    assert caller(other_project, otto).delete(address).status_code == 404


def test_it_invites_and_takes_back(manager: Client, client: Client, project: Project) -> None:
    answer = manager.post("/api/v1/invitations", {"email": "New@example.org"}, content_type=JSON)
    assert answer.status_code == 201
    link = answer.json()["link"].removeprefix("http://testserver")
    assert client.get(link).status_code == 200
    listed = manager.get("/api/v1/invitations").json()["data"]
    assert [(one["email"], one["role"]) for one in listed] == [("new@example.org", "editor")]
    assert "link" not in listed[0]
    assert manager.delete(f"/api/v1/invitations/{listed[0]['id']}").status_code == 204
    assert client.get(link).status_code == 404
    assert not Invitation.objects.exists()


def test_it_refuses_a_bad_address_and_a_member(manager: Client, ed: User) -> None:
    for email in ("nobody", "ed@example.org"):
        answer = manager.post("/api/v1/invitations", {"email": email}, content_type=JSON)
        assert answer.status_code == 422
        assert answer.json()["error"]["field"] == "email"


def test_it_shows_invitations_to_managers_only(manager: Client, project: Project, ed: User) -> None:
    manager.post("/api/v1/invitations", {"email": "new@example.org"}, content_type=JSON)
    assert caller(project, ed).get("/api/v1/invitations").json()["data"] == []


def test_it_makes_a_token_that_works_until_it_is_revoked(manager: Client, project: Project) -> None:
    answer = manager.post("/api/v1/tokens", {"name": "nightly", "scope": "write"}, content_type=JSON)
    assert answer.status_code == 201
    made = Client(headers={"Authorization": f"Bearer {answer.json()['secret']}"})
    assert made.get("/api/v1/runs").status_code == 200
    listed = manager.get("/api/v1/tokens").json()["data"]
    assert "nightly" in [one["name"] for one in listed]
    assert not any("secret" in one for one in listed)
    assert manager.delete(f"/api/v1/tokens/{answer.json()['id']}").status_code == 204
    assert made.get("/api/v1/runs").status_code == 401


def test_a_token_makes_none_that_outlives_it(project: Project, ed: User) -> None:
    short = caller(project, ed, days=7)
    for body in ({"name": "ever"}, {"name": "longer", "days": 30}):
        answer = short.post("/api/v1/tokens", body, content_type=JSON)
        assert answer.status_code == 422
        assert answer.json()["error"]["field"] == "days"
    assert short.post("/api/v1/tokens", {"name": "ok", "days": 1}, content_type=JSON).status_code == 201


def test_a_token_that_reads_makes_none(project: Project, mara: User) -> None:
    reading = caller(project, mara, scope=ApiToken.Scope.READ)
    assert reading.post("/api/v1/tokens", {"name": "x"}, content_type=JSON).status_code == 403


def test_it_leaves_other_people_s_tokens_alone(project: Project, ed: User, mara: User) -> None:
    theirs = ApiToken.issue(project, mara, "theirs")[0]
    editor = caller(project, ed)
    assert editor.delete(f"/api/v1/tokens/{theirs.pk}").status_code == 404
    assert [one["email"] for one in editor.get("/api/v1/tokens").json()["data"]] == ["ed@example.org"]


@pytest.mark.parametrize(
    ("address", "body"),
    [("/api/v1/tokens", {"name": "nightly"}), ("/api/v1/invitations", {"email": "new@example.org"})],
)
def test_a_repeated_key_makes_nothing_twice(manager: Client, address: str, body: dict[str, str]) -> None:
    headers = {"Idempotency-Key": "once-7"}
    assert manager.post(address, body, content_type=JSON, headers=headers).status_code == 201
    before = len(manager.get(address).json()["data"])
    assert manager.post(address, body, content_type=JSON, headers=headers).status_code == 409
    other = manager.post(
        address, {**body, next(iter(body)): "other@example.org"}, content_type=JSON, headers=headers
    )
    assert (other.status_code, other.json()["error"]["field"]) == (422, "Idempotency-Key")
    assert len(manager.get(address).json()["data"]) == before
