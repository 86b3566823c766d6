"""Webhooks: addresses that a project's programs listen on, and the events for them until they arrive.

The format is that of OpenAI's webhooks, which follow Standard Webhooks. A secret is derived from SECRET_KEY
and the row's salt, so that the database holds none.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import models
from django.db.models.functions import Now
from django.utils.crypto import salted_hmac
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project, ProjectQuerySet
from dashboard.models.jobs.job_state import db_now

if TYPE_CHECKING:
    from dashboard.models.training.training_run import TrainingRun

# Waits after each failed try; the last failure ends the delivery.
WAITS = tuple(timedelta(seconds=seconds) for seconds in (10, 60, 300, 1800, 7200))
EVENTS = {
    "succeeded": "fine_tuning.job.succeeded",
    "stopped_early": "fine_tuning.job.succeeded",
    "failed": "fine_tuning.job.failed",
    "cancelled": "fine_tuning.job.cancelled",
}
KEPT = timedelta(days=30)
MOST_WEBHOOKS = 5


def salt() -> str:
    return secrets.token_hex(16)


class WebhookQuerySet(ProjectQuerySet["Webhook"]):
    """Webhooks."""


class Webhook(models.Model):
    """An address that gets the events of a project."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="webhooks")
    url = models.CharField(_("address"), max_length=300)
    salt = models.CharField(max_length=32, default=salt)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = WebhookQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [models.UniqueConstraint(fields=["project", "url"], name="webhook_once_per_project")]

    def __str__(self) -> str:
        return self.url

    @property
    def is_allowed(self) -> bool:
        """Return whether the operator still allows its host."""
        return urlsplit(self.url).netloc.lower() in settings.WEBHOOK_HOSTS

    def key(self) -> bytes:
        """Return the key of its signatures."""
        return salted_hmac("webhook", self.salt, algorithm="sha256").digest()

    def secret(self) -> str:
        """Return the key as receivers are given it."""
        return f"whsec_{base64.b64encode(self.key()).decode()}"

    def signed_headers(self, event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """Return the headers by which a receiver verifies the body."""
        signed = f"{event_id}.{timestamp}.".encode() + body
        signature = base64.b64encode(hmac.new(self.key(), signed, hashlib.sha256).digest()).decode()
        return {
            "content-type": "application/json",
            "webhook-id": event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": f"v1,{signature}",
        }


class WebhookDeliveryQuerySet(models.QuerySet["WebhookDelivery"]):
    """Deliveries by state."""

    def announce(self, runs: Iterable[TrainingRun]) -> None:
        """Queue the event of each ended run for every webhook of its project.

        Call it in the transaction that writes the outcomes, so that no event is lost or invented. Runs of a
        learning-rate search are left out.
        """
        ended = [run for run in runs if run.rung is None]
        webhooks = Webhook.objects.filter(project__in={run.project_id for run in ended})
        self.bulk_create(
            WebhookDelivery(webhook=webhook, event=EVENTS[run.outcome], run_id=run.pk)
            for webhook in webhooks
            for run in ended
            if run.project_id == webhook.project_id
        )

    def due(self) -> list[WebhookDelivery]:
        """Return the oldest due delivery of each webhook, so that a slow one holds up no other for long."""
        first = self.filter(next_at__lte=db_now()).values("webhook").annotate(first=models.Min("pk"))
        return list(self.filter(pk__in=first.values("first")).select_related("webhook"))


class WebhookDelivery(models.Model):
    """One event on its way to one webhook. `next_at` is null once it arrived or was given up."""

    webhook = models.ForeignKey(Webhook, models.CASCADE, related_name="deliveries")
    event = models.CharField(max_length=40)
    run = models.ForeignKey("dashboard.TrainingRun", models.CASCADE, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    tries = models.PositiveSmallIntegerField(default=0)
    next_at = models.DateTimeField(db_default=Now(), null=True, blank=True)
    arrived_at = models.DateTimeField(null=True, blank=True)
    result = models.CharField(max_length=200, blank=True)

    objects = WebhookDeliveryQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        indexes = [models.Index(fields=["next_at"], name="webhook_delivery_due")]

    def __str__(self) -> str:
        return f"{self.event} to {self.webhook}"

    @property
    def event_id(self) -> str:
        """Return the id by which a receiver recognises a repeated event."""
        return f"evt_{self.pk}"

    def body(self) -> bytes:
        """Return the event."""
        values: dict[str, Any] = {
            "id": self.event_id,
            "object": "event",
            "created_at": int(self.created_at.timestamp()),
            "type": self.event,
            "data": {"id": f"ftjob-{self.run_id}"},
        }
        return json.dumps(values).encode()

    def record(self, *, arrived: bool, result: str) -> None:
        """Store the result of a try, and when the next one is due."""
        self.tries += 1
        self.result = result[:200]
        if arrived:
            self.next_at, self.arrived_at = None, db_now()
        else:
            self.next_at = db_now(WAITS[self.tries - 1]) if self.tries <= len(WAITS) else None
        self.save(update_fields=["tries", "result", "next_at", "arrived_at"])
