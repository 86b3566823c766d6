"""A job's history: one line per change of state or sentence from the engine, appended and never changed."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

EVENT_WORDS = {
    "submit": _("Waiting in the queue"),
    "claim": _("A worker took it"),
    "progress": _("The work began"),
    "work_done": _("The work is done, the result is being saved"),
    "succeed": _("Finished"),
    "fail": _("Failed"),
    "interrupt": _("Interrupted, will continue by itself"),
    "cancel_waiting": _("Stopped while it waited"),
    "cancel": _("Asked to stop"),
    "stopped": _("Stopped"),
    "requeue": _("Waiting again"),
    "give_up": _("Given up"),
    "resume": _("Waiting again, to continue"),
    "go_on": _("Its study goes on, and will be judged anew"),
    "finish": _("Asked to stop and to keep the best so far"),
    "discard": _("Asked to keep nothing after all"),
    "prioritise": _("Priority changed"),
}
# What people did, with their name before it.
DEED_WORDS = {
    "cancel_waiting": _("%(actor)s stopped it while it waited"),
    "cancel": _("%(actor)s asked to stop"),
    "finish": _("%(actor)s asked to stop and to keep the best so far"),
    "discard": _("%(actor)s asked to keep nothing after all"),
    "resume": _("%(actor)s asked to continue"),
    "prioritise": _("%(actor)s changed its priority"),
}
NOBODY = ("", "system")


class JobEventQuerySet(models.QuerySet["JobEvent"]):
    """Histories are read and appended to. They go with their job alone, by the database's cascade."""

    def update(self, **_fields: Any) -> int:
        """Refused, as `save` refuses it."""
        raise TypeError("A JobEvent is never changed.")

    def delete(self) -> tuple[int, dict[str, int]]:
        """Refused: delete the job."""
        raise TypeError("A JobEvent is never deleted without its job.")


class JobEvent(models.Model):
    """One line of a job's history; appended, never changed."""

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
        """Insert only."""
        if self.pk:
            raise TypeError("A JobEvent is never changed.")
        super().save(*args, **kwargs)

    def delete(self, *_args: Any, **_kwargs: Any) -> tuple[int, dict[str, int]]:
        """Never alone."""
        raise TypeError("A JobEvent is never deleted without its job.")

    @property
    def description(self) -> str:
        """What happened, as a sentence for people who watch the work."""
        if self.is_message:
            return self.text
        words = str(EVENT_WORDS.get(self.event, self.event))
        if self.event in DEED_WORDS and self.actor not in NOBODY:
            words = str(DEED_WORDS[self.event]) % {"actor": self.actor}
        return f"{words}: {self.text}" if self.text else words

    @property
    def is_message(self) -> bool:
        """Whether this is a sentence from the engine rather than a change of state."""
        return self.event == "message"
