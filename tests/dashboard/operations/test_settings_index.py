"""The settings page: its links."""

from __future__ import annotations

from django.test import Client
from django.urls import reverse

from dashboard.models import User


def test_links_to_tokens_models_password_and_api(client: Client, vera: User) -> None:
    client.force_login(vera)
    text = client.get(reverse("settings")).content.decode()
    for route in ("token-index", "base-model-index", "account_change_password"):
        assert f'href="{reverse(route)}"' in text
    assert 'href="/api/v1/docs"' in text
