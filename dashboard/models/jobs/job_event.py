"""A job's history: one event per change of state or message of the engine; append-only."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

EVENT_TEXTS = {
    "submit": _("Waiting in the queue"),
    "claim": _("A worker claimed it"),
    "progress": _("Running"),
    "work_done": _("The work is done and the result is being saved"),
    "succeed": _("Finished"),
    "fail": _("Failed"),
    "interrupt": _("Interrupted, will continue by itself"),
    "cancel_waiting": _("Stopped while it waited"),
    "cancel": _("Asked to stop"),
    "stopped": _("Stopped"),
    "requeue": _("Waiting again"),
    "give_up": _("Too many attempts"),
    "resume": _("Waiting again, to be resumed"),
    "go_on": _("Its study continues and will compute its result again"),
    "finish": _("Asked to stop and keep the best weights so far"),
    "discard": _("Asked to discard the progress"),
    "prioritise": _("Priority changed"),
}
# Texts of events that a user caused.
ACTOR_TEXTS = {
    "cancel_waiting": _("%(actor)s stopped it while it waited"),
    "cancel": _("%(actor)s asked to stop"),
    "finish": _("%(actor)s asked to stop and keep the best weights so far"),
    "discard": _("%(actor)s asked to discard the progress"),
    "resume": _("%(actor)s resumed it"),
    "prioritise": _("%(actor)s changed its priority"),
}
SYSTEM_ACTORS = ("", "system")


class JobEventQuerySet(models.QuerySet["JobEvent"]):
    """Append-only rows, deleted only with their job, by the database's cascade."""

    def update(self, **_fields: Any) -> int:
        """Raise TypeError: events are never changed."""
        raise TypeError("A JobEvent is never changed.")

    def delete(self) -> tuple[int, dict[str, int]]:
        """Raise TypeError: events are deleted with their job."""
        raise TypeError("A JobEvent is never deleted without its job.")


class JobEvent(models.Model):
    """One event of a job's history."""

    job = models.ForeignKey("dashboard.Job", models.CASCADE, related_name="events")
    seq = models.PositiveIntegerField()
    attempt = models.PositiveIntegerField()
    event = models.CharField(max_length=20)
    from_state = models.CharField(max_length=12)
    to_state = models.CharField(max_length=12)
    actor = models.CharField(max_length=254, blank=True)
    text = models.TextField(blank=True)
    level = models.CharField(max_length=10, default="info")
    created_at = models.DateTimeField(db_default=Now())

    objects = JobEventQuerySet.as_manager()

    class Meta:
        ordering = ["job", "seq"]
        constraints = [models.UniqueConstraint(fields=["job", "seq"], name="job_event_seq_once")]

    def __str__(self) -> str:
        return f"{self.job_id}.{self.seq} {self.event}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Insert a new row; raise TypeError for an existing one."""
        if self.pk:
            raise TypeError("A JobEvent is never changed.")
        super().save(*args, **kwargs)

    def delete(self, *_args: Any, **_kwargs: Any) -> tuple[int, dict[str, int]]:
        """Raise TypeError: events are deleted with their job."""
        raise TypeError("A JobEvent is never deleted without its job.")

    @property
    def description(self) -> str:
        """Return the event as a sentence for pages and the API."""
        if self.is_message:
            return self.text
        words = str(EVENT_TEXTS.get(self.event, self.event))
        if self.event in ACTOR_TEXTS and self.actor not in SYSTEM_ACTORS:
            words = str(ACTOR_TEXTS[self.event]) % {"actor": self.actor}
        return f"{words}: {self.text}" if self.text else words

    @property
    def is_message(self) -> bool:
        """Return whether this is a message of the engine rather than a change of state."""
        return self.event == "message"
