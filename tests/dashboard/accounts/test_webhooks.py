"""The page of webhooks: creation with a secret that is shown once, refused addresses, deletion."""

from __future__ import annotations

import re

import pytest
from django.test import Client
from pytest_django import Settings

from dashboard.models import Project, TrainingRun, User, Webhook, WebhookDelivery

LIST, NEW = "/settings/webhooks/", "/settings/webhooks/new/"
URL = "https://hooks.example.org/graftworks"


@pytest.fixture
def manager(client: Client, mara: User, settings: Settings) -> Client:
    """Mara's browser; events may be sent to two hosts."""
    settings.WEBHOOK_HOSTS = frozenset({"hooks.example.org", "127.0.0.1:9000"})
    client.force_login(mara)
    return client


@pytest.mark.parametrize("url", [URL, "http://127.0.0.1:9000/"])
def test_secret_is_shown_once(manager: Client, project: Project, mara: User, url: str) -> None:
    answer = manager.post(NEW, {"url": url})
    assert answer.status_code == 201
    assert "no-store" in answer.headers["Cache-Control"]
    webhook = Webhook.objects.get()
    assert (webhook.project, webhook.url, webhook.created_by) == (project, url, mara)
    [secret] = re.findall(r"whsec_[\w+/=]+", answer.content.decode())
    assert secret == webhook.secret()
    page = manager.get(LIST).content.decode()
    assert url in page
    assert "whsec_" not in page


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.org",
        "http://hooks.example.org/",
        "https://other.example.org/",
        "https://hooks.example.org:9000/",
        "https://hooks.example.org@127.0.0.1/",
        "https://127.0.0.1/",
        "http://127.0.0.1:6379/",
        "http://[::1]:9000/",
        "https://2130706433/",
        "ftp://hooks.example.org/",
        "https://hooks.example.org/?a=b",
        "https://hooks.example.org/\r\nHost: x",
        "https://hooks.example.org/" + "x" * 300,
    ],
)
def test_other_address_is_refused(manager: Client, url: str) -> None:
    answer = manager.post(NEW, {"url": url})
    assert answer.status_code == 422
    assert "url" in answer.context["form"].errors
    assert not Webhook.objects.exists()


def test_address_is_there_once_and_there_are_five(manager: Client, project: Project) -> None:
    manager.post(NEW, {"url": URL})
    assert manager.post(NEW, {"url": URL}).status_code == 422
    for number in range(4):
        assert manager.post(NEW, {"url": f"{URL}/{number}"}).status_code == 201
    assert manager.post(NEW, {"url": f"{URL}/5"}).status_code == 422
    assert Webhook.objects.count() == 5


def test_nothing_is_created_before_the_operator_allows_a_host(manager: Client, settings: Settings) -> None:
    settings.WEBHOOK_HOSTS = frozenset()
    assert "WEBHOOK_HOSTS" in manager.get(LIST).content.decode()
    assert manager.post(NEW, {"url": URL}).status_code == 422


def test_deleted_webhook_is_gone_with_its_deliveries(
    manager: Client, project: Project, run: TrainingRun
) -> None:
    webhook = Webhook.objects.create(project=project, url=URL)
    run.end("succeeded", step=1)
    assert "fine_tuning.job.succeeded" in manager.get(LIST).content.decode()
    manager.post(f"/settings/webhooks/{webhook.pk}/delete/")
    assert not Webhook.objects.exists()
    assert not WebhookDelivery.objects.exists()
