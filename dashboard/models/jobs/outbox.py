"""Outbox of wake-ups: written with the job, published to the broker by the dispatcher."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from django.db import models
from django.db.models.functions import Now

from dashboard.models.jobs.job_state import State, db_now

# A dispatcher that reaches the broker sends a wake-up within seconds.
UNSENT_AFTER = timedelta(seconds=30)


class OutboxQuerySet(models.QuerySet["Outbox"]):
    """Published and unpublished wake-ups."""

    def unsent(self) -> OutboxQuerySet:
        """Filter unpublished wake-ups, oldest first."""
        return self.filter(sent_at=None).order_by("pk")

    def overdue(self) -> OutboxQuerySet:
        """Filter unpublished wake-ups of waiting jobs, older than UNSENT_AFTER."""
        return self.filter(sent_at=None, job__state=State.QUEUED, created_at__lt=db_now(-UNSENT_AFTER))

    def mark_sent(self, ids: Iterable[int]) -> None:
        """Mark wake-ups as published. Publishing one twice is harmless."""
        self.filter(pk__in=list(ids)).update(sent_at=Now())


class Outbox(models.Model):
    """A wake-up, written in the transaction that queues the job."""

    job = models.ForeignKey("dashboard.Job", models.CASCADE, related_name="outbox")
    created_at = models.DateTimeField(db_default=Now())
    sent_at = models.DateTimeField(null=True, blank=True)

    objects = OutboxQuerySet.as_manager()

    class Meta:
        indexes = [models.Index(fields=["sent_at"])]

    def __str__(self) -> str:
        return f"wake-up for job {self.job_id}"
