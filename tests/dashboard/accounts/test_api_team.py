"""Members, invitations and tokens over the API."""

from __future__ import annotations

import pytest
from django.test import Client

from dashboard.models import ApiToken, Invitation, Membership, Project, Role, User
from tests.dashboard.conftest import api_client

JSON = "application/json"


@pytest.fixture
def manager(project: Project, mara: User) -> Client:
    return api_client(project, mara)


def test_list_members(manager: Client, ed: User, otto: User) -> None:
    members = manager.get("/api/v1/members").json()["data"]
    assert {(one["email"], one["role"]) for one in members} == {
        ("mara@example.org", "manager"),
        ("ed@example.org", "editor"),
    }


def test_change_role_and_remove_member(manager: Client, ed: User) -> None:
    member = Membership.objects.get(user=ed)
    address = f"/api/v1/members/{member.pk}"
    assert manager.post(f"{address}/role", {"role": "viewer"}, content_type=JSON).json()["role"] == "viewer"
    assert manager.post(f"{address}/role", {"role": "owner"}, content_type=JSON).status_code == 422
    assert manager.delete(address).status_code == 204
    assert not Membership.objects.filter(user=ed).exists()


def test_last_manager_is_kept(manager: Client, mara: User) -> None:
    address = f"/api/v1/members/{Membership.objects.get(user=mara).pk}"
    assert manager.delete(address).status_code == 409
    assert manager.post(f"{address}/role", {"role": "viewer"}, content_type=JSON).status_code == 409
    assert Membership.objects.get(user=mara).role == Role.MANAGER


def test_invite_and_revoke(manager: Client, client: Client, project: Project) -> None:
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


def test_invitation_refuses_bad_address_and_members(manager: Client, ed: User) -> None:
    for email in ("nobody", "ed@example.org"):
        answer = manager.post("/api/v1/invitations", {"email": email}, content_type=JSON)
        assert answer.status_code == 422
        assert answer.json()["error"]["field"] == "email"


def test_only_managers_see_invitations(manager: Client, project: Project, ed: User) -> None:
    manager.post("/api/v1/invitations", {"email": "new@example.org"}, content_type=JSON)
    assert api_client(project, ed).get("/api/v1/invitations").json()["data"] == []


def test_token_works_until_revoked(manager: Client, project: Project) -> None:
    answer = manager.post("/api/v1/tokens", {"name": "nightly", "scope": "write"}, content_type=JSON)
    assert answer.status_code == 201
    made = Client(headers={"Authorization": f"Bearer {answer.json()['secret']}"})
    assert made.get("/api/v1/runs").status_code == 200
    listed = manager.get("/api/v1/tokens").json()["data"]
    assert "nightly" in [one["name"] for one in listed]
    assert not any("secret" in one for one in listed)
    assert manager.delete(f"/api/v1/tokens/{answer.json()['id']}").status_code == 204
    assert made.get("/api/v1/runs").status_code == 401


def test_token_creates_none_that_expires_later(project: Project, ed: User) -> None:
    short = api_client(project, ed, days=7)
    for body in ({"name": "ever"}, {"name": "longer", "days": 30}):
        answer = short.post("/api/v1/tokens", body, content_type=JSON)
        assert answer.status_code == 422
        assert answer.json()["error"]["field"] == "days"
    assert short.post("/api/v1/tokens", {"name": "ok", "days": 1}, content_type=JSON).status_code == 201


def test_editor_cannot_see_or_revoke_others_tokens(project: Project, ed: User, mara: User) -> None:
    theirs = ApiToken.issue(project, mara, "theirs")[0]
    editor = api_client(project, ed)
    assert editor.delete(f"/api/v1/tokens/{theirs.pk}").status_code == 404
    assert [one["email"] for one in editor.get("/api/v1/tokens").json()["data"]] == ["ed@example.org"]


@pytest.mark.parametrize(
    ("address", "body"),
    [("/api/v1/tokens", {"name": "nightly"}), ("/api/v1/invitations", {"email": "new@example.org"})],
)
def test_repeated_idempotency_key_creates_nothing(
    manager: Client, address: str, body: dict[str, str]
) -> None:
    headers = {"Idempotency-Key": "once-7"}
    assert manager.post(address, body, content_type=JSON, headers=headers).status_code == 201
    before = len(manager.get(address).json()["data"])
    assert manager.post(address, body, content_type=JSON, headers=headers).status_code == 409
    other = manager.post(
        address, {**body, next(iter(body)): "other@example.org"}, content_type=JSON, headers=headers
    )
    assert (other.status_code, other.json()["error"]["field"]) == (422, "Idempotency-Key")
    assert len(manager.get(address).json()["data"]) == before
