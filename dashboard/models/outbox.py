"""Wake-ups on their way to the broker: written with the job, published by the dispatcher."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from django.db import models
from django.db.models.functions import Now

from dashboard.models.job_state import State, db_now

# A dispatcher that reaches the broker sends a wake-up within seconds.
UNSENT_AFTER = timedelta(seconds=30)


class OutboxQuerySet(models.QuerySet["Outbox"]):
    """Wake-ups that still have to reach the broker."""

    def unsent(self) -> OutboxQuerySet:
        """Oldest first."""
        return self.filter(sent_at=None).select_related("job").order_by("pk")

    def overdue(self) -> OutboxQuerySet:
        """Wake-ups of waiting jobs that should have gone out long ago."""
        return self.filter(sent_at=None, job__state=State.QUEUED, created_at__lt=db_now(-UNSENT_AFTER))

    def mark_sent(self, ids: Iterable[int]) -> None:
        """The broker has these; sending one twice would be harmless."""
        self.filter(pk__in=list(ids)).update(sent_at=Now())


class Outbox(models.Model):
    """A wake-up to publish, written in the transaction that queued the job."""

    job = models.ForeignKey("dashboard.Job", models.CASCADE, related_name="outbox")
    created_at = models.DateTimeField(db_default=Now())
    sent_at = models.DateTimeField(null=True, blank=True)

    objects = OutboxQuerySet.as_manager()

    class Meta:
        indexes = [models.Index(fields=["sent_at"])]

    def __str__(self) -> str:
        return f"wake-up for job {self.job_id}"
