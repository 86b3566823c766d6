"""Webhooks: each end of a run is sent to a real receiver, signed, and again until it arrives."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import openai
import pytest
from django.utils import timezone
from openai import OpenAI
from pytest_django import Settings

from dashboard.models import Project, TrainingRun, Webhook, WebhookDelivery
from dashboard.models.jobs.webhook import WAITS
from tests.conftest import finish
from tests.dashboard.conftest import make_checkpoint, start_training
from tests.receivers import Receiver, receiver
from workers.supervision import webhooks
from workers.supervision.webhooks import deliver_webhooks

CLIENT = OpenAI(api_key="unused")


@pytest.fixture
def listening(settings: Settings) -> Iterator[Receiver]:
    with receiver() as one:
        settings.WEBHOOK_HOSTS = frozenset({one.url.split("/")[2]})
        yield one


@pytest.fixture
def webhook(project: Project, listening: Receiver) -> Webhook:
    return Webhook.objects.create(project=project, url=listening.url)


def make_due() -> None:
    WebhookDelivery.objects.exclude(next_at=None).update(next_at=timezone.now() - timedelta(seconds=1))


def test_finished_run_is_an_event_that_the_client_verifies(
    run: TrainingRun, webhook: Webhook, listening: Receiver
) -> None:
    run.end("succeeded", step=10)
    deliver_webhooks()
    deliver_webhooks()
    [(headers, body)] = listening.events
    event = CLIENT.webhooks.unwrap(body, headers, secret=webhook.secret())
    assert event.type == "fine_tuning.job.succeeded"
    assert event.data.id == f"ftjob-{run.pk}"
    assert event.id == headers["webhook-id"]
    delivery = WebhookDelivery.objects.get()
    assert (delivery.tries, delivery.result, delivery.next_at) == (1, "Status 204", None)
    assert delivery.arrived_at
    for changed in (body.replace(b"succeeded", b"cancelled"), b"{}"):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            CLIENT.webhooks.unwrap(changed, headers, secret=webhook.secret())
    other = Webhook.objects.create(project=webhook.project, url="https://hooks.example.org/")
    with pytest.raises(openai.InvalidWebhookSignatureError):
        CLIENT.webhooks.unwrap(body, headers, secret=other.secret())


def test_each_outcome_has_its_event(run: TrainingRun, webhook: Webhook) -> None:
    job = start_training(run)
    make_checkpoint(job, 5)
    job.request_cancel(keep="checkpoint")
    job.complete_stop()
    run.refresh_from_db()
    run.resume()
    assert run.job
    run.job.refresh_from_db()
    finish(run.job, "failed")  # type: ignore[arg-type]
    TrainingRun.objects.filter(pk=run.pk).update(outcome="")
    run.end("stopped_early", step=5)
    events = list(WebhookDelivery.objects.order_by("pk").values_list("event", flat=True))
    assert [event.rpartition(".")[2] for event in events] == ["cancelled", "failed", "succeeded"]


def test_other_projects_and_short_runs_have_no_event(
    run: TrainingRun, webhook: Webhook, other_project: Project
) -> None:
    Webhook.objects.filter(pk=webhook.pk).update(project=other_project)
    run.end("succeeded", step=10)
    Webhook.objects.filter(pk=webhook.pk).update(project=run.project)
    TrainingRun.objects.filter(pk=run.pk).update(outcome="", rung=1)
    run.refresh_from_db()
    run.end("succeeded", step=10)
    assert not WebhookDelivery.objects.exists()


def test_failed_delivery_is_tried_again_with_the_same_id(
    run: TrainingRun, webhook: Webhook, listening: Receiver
) -> None:
    listening.statuses = [500]
    run.end("failed", step=1, code="diverged", message="The loss is not a number.")
    deliver_webhooks()
    deliver_webhooks()
    assert len(listening.events) == 1, "not before its wait is over"
    assert WebhookDelivery.objects.get().result == "Status 500"
    make_due()
    deliver_webhooks()
    assert len({headers["webhook-id"] for headers, _body in listening.events}) == 1
    assert WebhookDelivery.objects.get().arrived_at


def test_delivery_is_given_up(run: TrainingRun, webhook: Webhook, listening: Receiver) -> None:
    listening.statuses = [500] * 20
    run.end("succeeded", step=1)
    for _try in range(len(WAITS) + 3):
        make_due()
        deliver_webhooks()
    delivery = WebhookDelivery.objects.get()
    assert (delivery.tries, delivery.next_at, delivery.arrived_at) == (len(WAITS) + 1, None, None)
    assert len(listening.events) == len(WAITS) + 1


def test_redirect_is_not_followed(run: TrainingRun, webhook: Webhook, listening: Receiver) -> None:
    listening.statuses = [307]
    run.end("succeeded", step=1)
    deliver_webhooks()
    assert len(listening.events) == 1
    assert WebhookDelivery.objects.get().result == "Status 307"


def test_slow_receiver_does_not_hold_up_others(
    run: TrainingRun,
    webhook: Webhook,
    listening: Receiver,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhooks, "SECONDS", 0.2)
    listening.wait = 0.05
    with receiver() as other:
        settings.WEBHOOK_HOSTS |= {other.url.split("/")[2]}
        Webhook.objects.create(project=run.project, url=other.url)
        run.end("succeeded", step=1)
        deliver_webhooks()
        assert len(other.events) == 1
    assert WebhookDelivery.objects.get(webhook=webhook).result == "No answer"


def test_host_that_is_no_longer_allowed_is_not_asked(
    run: TrainingRun, webhook: Webhook, listening: Receiver, settings: Settings
) -> None:
    settings.WEBHOOK_HOSTS = frozenset()
    run.end("succeeded", step=1)
    deliver_webhooks()
    assert listening.events == []
    assert "WEBHOOK_HOSTS" in WebhookDelivery.objects.get().result


def test_database_holds_no_secret(webhook: Webhook) -> None:
    key = webhook.secret().removeprefix("whsec_")
    assert key not in str(Webhook.objects.values().get())
    assert Webhook.objects.get(pk=webhook.pk).secret() == webhook.secret()
