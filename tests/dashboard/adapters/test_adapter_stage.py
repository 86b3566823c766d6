"""The stage of an adapter: managers approve and retire."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, User


def change(client: Client, user: User, adapter: Adapter, stage: str) -> tuple[int, str]:
    client.force_login(user)
    response = client.post(reverse("adapter-stage", args=[adapter.pk]), {"stage": stage}, follow=True)
    return response.status_code, response.content.decode()


@pytest.mark.parametrize("stage", ["approved", "draft"])
def test_a_manager_changes_it(client: Client, mara: User, adapter: Adapter, stage: str) -> None:
    _status, text = change(client, mara, adapter, stage)
    adapter.refresh_from_db()
    assert adapter.stage == stage
    assert f"Stage of Triage:v1: {adapter.get_stage_display()}." in text


@pytest.mark.parametrize("stage", ["", "approved\x00"])
def test_it_refuses_a_stage_that_does_not_exist(
    client: Client, mara: User, adapter: Adapter, stage: str
) -> None:
    _status, text = change(client, mara, adapter, stage)
    adapter.refresh_from_db()
    assert adapter.stage == "draft"
    assert "Choose the stage" in text
