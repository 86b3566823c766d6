"""Pushes to the hub: who starts them, what is refused, and that no page shows the token."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, BaseModel, HubPush, Job, Project, State, User
from dashboard.models.adapters import hub_push
from dashboard.presenters.queue_board import title_and_url
from tests.conftest import finish
from tests.dashboard.conftest import api_client

TOKEN = "hf_canarycanary"
FIELDS = {"repository": "team/triage", "format": "adapter", "token": TOKEN, "private": "on"}


def push(client: Client, adapter: Adapter, **changes: str) -> Any:
    return client.post(reverse("adapter-push", args=[adapter.pk]), FIELDS | changes)


def test_a_manager_pushes_in_private(client: Client, mara: User, adapter: Adapter) -> None:
    client.force_login(mara)
    assert push(client, adapter).status_code == 302
    row = HubPush.objects.get()
    assert (row.repository, row.private, row.job.queue) == ("team/triage", True, Job.Queue.CPU)
    assert title_and_url(row.job, [row]) == (str(row), f"{adapter.get_absolute_url()}#pushes")
    assert TOKEN not in str(row.job.spec) + row.sealed_token
    assert HubPush.objects.token_of(row.job) == TOKEN
    page = client.get(adapter.get_absolute_url()).content.decode()
    assert f'data-push="{row.pk}"' in page
    finish(row.job, State.FAILED)
    row.refresh_from_db()
    assert row.sealed_token == ""


def test_editors_have_no_form_and_may_not_push(client: Client, ed: User, adapter: Adapter) -> None:
    client.force_login(ed)
    address = reverse("adapter-push", args=[adapter.pk])
    assert address not in client.get(adapter.get_absolute_url()).content.decode()
    assert push(client, adapter).status_code == 403
    assert not HubPush.objects.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"repository": "triage"},
        {"repository": "../../etc/passwd"},
        {"format": "pickle"},
        {"token": ""},
        {"token": "hf canary"},
        {"token": "hf_\u00e4"},
    ],
)
def test_wrong_input_is_told_and_the_token_not_shown(
    client: Client, mara: User, adapter: Adapter, changes: dict[str, str]
) -> None:
    client.force_login(mara)
    answer = push(client, adapter, **changes)
    assert answer.status_code == 422
    assert TOKEN not in answer.content.decode()
    assert not HubPush.objects.exists()


def test_offline_installations_offer_no_push(
    client: Client, mara: User, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.force_login(mara)
    address = reverse("adapter-push", args=[adapter.pk])
    assert address in client.get(adapter.get_absolute_url()).content.decode()
    monkeypatch.setattr(settings, "HF_HUB_OFFLINE", True)
    assert address not in client.get(adapter.get_absolute_url()).content.decode()


def test_a_base_model_without_gguf_form_is_refused(client: Client, mara: User, adapter: Adapter) -> None:
    census = {**(adapter.base_model.census or {}), "model_type": "gpt2"}
    BaseModel.objects.filter(pk=adapter.base_model_id).update(census=census)
    client.force_login(mara)
    assert push(client, adapter, format="gguf-f16").status_code == 422


def test_a_token_is_of_no_use_after_a_day_or_with_another_key(
    mara: User, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {"format": "adapter", "repository": "team/triage", "token": TOKEN}
    row = HubPush.objects.start(adapter, mara, **values)
    later = time.time() + hub_push.TOKEN_SECONDS + 60
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later)
        assert HubPush.objects.token_of(row.job) == ""
    assert HubPush.objects.token_of(row.job) == TOKEN
    monkeypatch.setattr(settings, "SECRET_KEY", "another" * 10)
    assert HubPush.objects.token_of(row.job) == ""


def test_the_api_pushes_for_managers(project: Project, mara: User, ed: User, adapter: Adapter) -> None:
    values = {"adapter": adapter.pk, "repository": "team/triage", "token": TOKEN}
    ours = api_client(project, mara)
    assert (
        api_client(project, ed).post("/api/v1/pushes", values, content_type="application/json").status_code
        == 403
    )
    answer = ours.post(
        "/api/v1/pushes", values, content_type="application/json", headers={"Idempotency-Key": "one"}
    )
    made = answer.json()
    assert (answer.status_code, made["state"], made["private"]) == (202, "queued", True)
    assert TOKEN not in answer.content.decode()
    assert ours.get(f"/api/v1/pushes/{made['id']}").json() == made
    assert ours.get("/api/v1/pushes").json()["data"] == [made]
    for changes, status, field in (
        ({"repository": "x"}, 422, "repository"),
        ({"format": "x"}, 422, "format"),
        ({"adapter": 10**9}, 404, "adapter"),
        ({"adapter": None}, 422, "adapter"),
        ({"path": "/etc"}, 422, "path"),
    ):
        refused = ours.post("/api/v1/pushes", values | changes, content_type="application/json")
        assert (refused.status_code, refused.json()["error"]["field"]) == (status, field)
    assert HubPush.objects.count() == 1
