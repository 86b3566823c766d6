"""The job: one state machine, claimed by conditional UPDATE, fenced by its attempt number.

The row is the truth; a Celery message only wakes a worker. `Job.move` performs every change of state and
writes the JobEvent in the same transaction. Knows nothing of Celery, processes or tensors.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models, transaction
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project
from dashboard.models.jobs import checkpoint
from dashboard.models.jobs.job_event import JobEvent
from dashboard.models.jobs.job_queryset import JobQuerySet
from dashboard.models.jobs.job_state import LEASE, LIVE, MOVES, TERMINAL, WAITING, IllegalMove, State, db_now
from dashboard.models.jobs.outbox import Outbox
from dashboard.models.jobs.webhook import WebhookDelivery

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

# Wait before the next attempt, by the number of failed attempts; MAX_FAILED_ATTEMPTS ends them.
BACK_OFF = (timedelta(), timedelta(seconds=2), timedelta(seconds=60))
MAX_FAILED_ATTEMPTS = 3
MAX_ATTEMPTS = 10
# Bytes that pages read of a log per line they show.
LOG_LINE_BYTES = 400
ACTOR_LETTERS = 254


class Job(models.Model):
    """One piece of work for a worker process; what it does says its kind."""

    class Kind(models.TextChoices):
        IMPORT = "import", _("Import")
        INSPECT = "inspect", _("Inspect")
        TRAIN = "train", _("Fine-tune")
        EVALUATE = "evaluate", _("Evaluate")
        JUDGE = "judge", _("Judge answers")
        SERVE = "serve", _("Answer prompts")
        EXPORT = "export", _("Export")
        PUSH = "push", _("Push to the hub")

    class Priority(models.IntegerChoices):
        HIGH = 1, _("High")
        NORMAL = 0, _("Normal")
        LOW = -1, _("Low")

    class Queue(models.TextChoices):
        GPU = "gpu", _("Training")
        CPU = "cpu", _("Light work")
        SERVE = "serve", _("Playground and chat")

    class Keep(models.TextChoices):
        """The result that a stopped training keeps."""

        NOTHING = "", _("Nothing")
        ADAPTER = "adapter", _("The best weights so far, as an adapter")
        CHECKPOINT = "checkpoint", _("The checkpoint, to resume later")

    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="jobs")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    queue = models.CharField(max_length=10, choices=Queue.choices)
    state = models.CharField(max_length=12, choices=State.choices, default=State.QUEUED)
    spec = models.JSONField()
    priority = models.SmallIntegerField(choices=Priority.choices, default=Priority.NORMAL)
    needs_4bit = models.BooleanField(default=False)  # only some workers can keep a base model in 4 bits
    idempotency_key = models.CharField(max_length=200, blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="jobs"
    )
    created_at = models.DateTimeField(db_default=Now())
    run_after = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    # The fencing token: every write of a worker names the attempt it belongs to.
    attempt = models.PositiveIntegerField(default=0)
    # Consecutive attempts without a completed step.
    failed_attempts = models.PositiveSmallIntegerField(default=0)
    # Attempts that do not count towards MAX_ATTEMPTS, such as drained ones.
    ignored_attempts = models.PositiveIntegerField(default=0)
    lease_until = models.DateTimeField(null=True, blank=True)
    worker = models.CharField(max_length=120, blank=True)
    slot = models.CharField(max_length=120, null=True, blank=True)  # noqa: DJ001 - NULLs do not collide, '' would
    host = models.CharField(max_length=120, blank=True)
    pid = models.PositiveIntegerField(null=True, blank=True)
    pid_started = models.FloatField(null=True, blank=True)
    child_pid = models.PositiveIntegerField(null=True, blank=True)
    child_started = models.FloatField(null=True, blank=True)
    # Progress of the current phase. The unit of step and total_steps is the phase's own, for example bytes.
    phase = models.CharField(max_length=20, blank=True)
    step = models.PositiveBigIntegerField(default=0)
    total_steps = models.PositiveBigIntegerField(default=0)
    eta_seconds = models.FloatField(null=True, blank=True)
    error_code = models.CharField(max_length=40, blank=True)
    error_message = models.TextField(blank=True)
    keep = models.CharField(max_length=10, choices=Keep.choices, blank=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        indexes = [
            # These two cover all that a claim reads of waiting jobs and of earlier starts.
            models.Index(
                fields=["queue", "state", "run_after", "priority", "project", "needs_4bit", "kind"],
                name="job_order",
            ),
            models.Index(fields=["queue", "started_at", "project"], name="job_starts"),
            # Forms read the project's usage of this month at every change.
            models.Index(fields=["project", "queue", "finished_at", "created_by"], name="job_used"),
            models.Index(fields=["kind", "state", "finished_at"]),
            # The queue's page lists what ended last.
            models.Index(fields=["finished_at"], name="job_ended"),
            # Home says who waits, and for how long.
            models.Index(
                fields=["project", "created_by", "created_at"],
                condition=models.Q(state="queued"),
                name="job_waiting",
            ),
            models.Index(fields=["state", "lease_until"]),
        ]
        constraints = [
            models.CheckConstraint(condition=models.Q(state__in=State.values), name="job_state_known"),
            models.CheckConstraint(
                condition=models.Q(keep__in=["", "adapter", "checkpoint"]), name="job_keep_known"
            ),
            models.CheckConstraint(
                condition=~models.Q(state__in=[state.value for state in TERMINAL])
                | models.Q(finished_at__isnull=False),
                name="job_finished_has_an_end",
            ),
            models.UniqueConstraint(
                fields=["slot"],
                condition=models.Q(state__in=[state.value for state in LIVE]),
                name="job_one_live_per_slot",
            ),
            models.UniqueConstraint(
                fields=["project", "idempotency_key"],
                condition=~models.Q(idempotency_key=""),
                name="job_idempotency_key_once_per_project",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {self.pk}"

    def move(
        self, event: str, *, actor: str = "system", reason: str = "", fenced: bool = False, **fields: Any
    ) -> None:
        """Perform one transition and record its JobEvent, or raise IllegalMove and change nothing.

        `fenced` also requires that the row still belongs to this object's attempt; workers always set it.
        """
        sources, target = MOVES[event]
        fields["state"] = target
        if target in TERMINAL:
            fields.update(finished_at=Now(), lease_until=None)
        elif target in (State.QUEUED, State.INTERRUPTED):
            fields.update(lease_until=None, finished_at=None)
        with transaction.atomic():
            row = Job.objects.filter(pk=self.pk, state__in=sources)
            if fenced:
                row = row.filter(attempt=self.attempt)
            if event == "claim":
                row = row.filter(run_after__lte=db_now())
            # Locked, so that the history names the state that this move leaves.
            states = Job.objects.select_for_update().values_list("state", flat=True)
            source = State(states.get(pk=self.pk))
            # The row count decides the race: 0 means that another transition came first.
            if not row.update(**fields):
                raise IllegalMove(f"{self} cannot {event} from {source}")
            self.refresh_from_db(fields=["state", "attempt", "finished_at", "lease_until", "run_after"])
            self.record(event, source, target, actor=actor, text=reason)
            if target in (State.FAILED, State.CANCELLED):
                self._end_open_runs(target, fields)
            if target in TERMINAL and self.kind == self.Kind.PUSH:
                self.hub_pushes.update(sealed_token="")
            if target == State.QUEUED:
                Outbox.objects.create(job=self)

    def _end_open_runs(self, target: State, fields: dict[str, Any]) -> None:
        """Give the job's outcome to the runs that have none of their own."""
        open_runs = list(self.training_runs.filter(outcome="").values_list("pk", flat=True))
        self.training_runs.filter(pk__in=open_runs, outcome="").update(
            outcome=target,
            error_code=fields.get("error_code", ""),
            error_message=fields.get("error_message", ""),
        )
        WebhookDelivery.objects.announce(self.training_runs.filter(pk__in=open_runs))

    def record(
        self,
        event: str,
        source: State,
        target: State,
        *,
        actor: str = "",
        text: str = "",
        level: str = "info",
    ) -> None:
        """Append an event to the job's history."""
        seq = (self.events.aggregate(last=models.Max("seq"))["last"] or 0) + 1
        JobEvent.objects.create(
            job=self, seq=seq, attempt=self.attempt, event=event, from_state=source, to_state=target,
            actor=actor[:ACTOR_LETTERS], text=text, level=level,
        )  # fmt: skip

    def add_message(self, text: str, level: str = "info") -> bool:
        """Append a message of this attempt's engine to the history. Return False if fenced."""
        with transaction.atomic():
            mine = Job.objects.filter(pk=self.pk, attempt=self.attempt, state__in=LIVE)
            # The update locks the row, so that two writers do not take the same `seq`.
            if not mine.update(worker=models.F("worker")):
                return False
            state = State(Job.objects.values_list("state", flat=True).get(pk=self.pk))
            self.record("message", state, state, actor=self.worker, text=text, level=level)
        return True

    def newest_message(self) -> str | None:
        """Return the text of the newest event of this attempt if it is a message of the engine."""
        event = self.events.filter(attempt=self.attempt).order_by("-seq").first()
        return event.text if event and event.event == "message" else None

    def request_cancel(self, by: User | None = None, keep: str = "") -> bool:
        """Stop this job; see `stop_job`."""
        from dashboard.models.jobs.stop import stop_job

        return stop_job(self, by, keep)

    def complete_stop(self, *, actor: str = "system", reason: str = "") -> None:
        """Move a stopping job to cancelled. A requested checkpoint is kept only if one exists."""
        from dashboard.models.jobs.stop import describe_kept_checkpoint

        with transaction.atomic():
            keep = Job.objects.select_for_update().values_list("keep", flat=True).get(pk=self.pk)
            if keep == Job.Keep.CHECKPOINT:
                reason = " ".join(filter(None, (reason, describe_kept_checkpoint(self))))
                keep = keep if self.may_have_checkpoint else Job.Keep.NOTHING
            self.move("stopped", actor=actor, reason=reason, fenced=True, keep=keep)

    def read_stop_request(self) -> str | None:
        """Return the stop request for its worker: "" (none), "cancel", "park" or "finish"; None if fenced."""
        held = Job.objects.filter(pk=self.pk, attempt=self.attempt, state__in=LIVE)
        state, keep = held.values_list("state", "keep").first() or (None, "")
        if state is None:
            return None
        if state == State.CANCELLING:
            return "park" if keep == Job.Keep.CHECKPOINT else "cancel"
        return "finish" if keep == Job.Keep.ADAPTER else ""

    @property
    def is_stop_requested(self) -> bool:
        """Return whether it is to end before its last step."""
        early = self.keep == Job.Keep.ADAPTER and not self.is_over
        return early or self.state == State.CANCELLING

    @property
    def keeps_checkpoint(self) -> bool:
        """Return whether a later attempt may need its checkpoints, so that cleanup must not delete them."""
        kept = self.state == State.CANCELLED and self.keep == Job.Keep.CHECKPOINT
        return not self.is_over or self.state == State.FAILED or kept

    def checkpoint_step(self) -> int | None:
        """Return the completed steps of its newest checkpoint, or None."""
        return checkpoint.newest_step(self.checkpoint_folder())

    @property
    def may_have_checkpoint(self) -> bool:
        """Return whether a checkpoint exists, or may exist on a disk that does not answer."""
        return checkpoint.may_exist(self.checkpoint_folder())

    def renew_lease(self) -> bool:
        """Extend the lease. Return False if fenced: another attempt holds the job, or it has ended."""
        mine = Job.objects.filter(pk=self.pk, attempt=self.attempt, state__in=LIVE)
        return bool(mine.update(lease_until=db_now(LEASE)))

    def may_commit(self) -> bool:
        """Return whether this attempt may write a result; holds until the end of the transaction."""
        # The update locks the row: neither a stop nor another attempt can come before the commit.
        open_ones = [state for state in LIVE if state != State.CANCELLING]
        mine = Job.objects.filter(pk=self.pk, attempt=self.attempt, state__in=open_ones)
        return bool(mine.update(lease_until=db_now(LEASE)))

    def update_progress(self, **fields: Any) -> bool:
        """Update the progress of this attempt. Return False if fenced."""
        return bool(Job.objects.filter(pk=self.pk, attempt=self.attempt, state__in=LIVE).update(**fields))

    def interrupt(
        self,
        reason: str,
        *,
        actor: str = "system",
        fenced: bool = True,
        counts_as_failure: bool = True,
    ) -> None:
        """End the attempt; the dispatcher queues the job again after a back-off.

        `counts_as_failure=False` exempts the attempt from the limits, for example after a drain.
        """
        # A completed step has reset the row's count since this object was read.
        self.refresh_from_db(fields=["failed_attempts"])
        failed_attempts = self.failed_attempts if counts_as_failure else 0
        wait = BACK_OFF[min(failed_attempts, len(BACK_OFF) - 1)]
        with transaction.atomic():
            self.move(
                "interrupt",
                actor=actor,
                reason=reason,
                fenced=fenced,
                failed_attempts=failed_attempts,
                ignored_attempts=models.F("ignored_attempts") + int(not counts_as_failure),
                run_after=db_now(wait),
                slot=None,
            )
            self.refresh_from_db(fields=["failed_attempts", "ignored_attempts", "keep"])
            # Without a checkpoint there is no adapter to save, so the job ends now instead of being retried.
            if self.keep == Job.Keep.ADAPTER and not self.may_have_checkpoint:
                words = _("Stopped before the first checkpoint; nothing to keep.")
                self.move("cancel_waiting", reason=str(words), keep=Job.Keep.NOTHING)
            elif self.has_exhausted_attempts:
                self.requeue_or_fail()

    def recover(self, reason: str) -> None:
        """Release the job of a lost worker: complete a requested stop, else interrupt the attempt."""
        if self.state == State.CANCELLING:
            self.complete_stop(reason=reason)
        else:
            self.interrupt(reason)

    @property
    def has_exhausted_attempts(self) -> bool:
        return (
            self.failed_attempts >= MAX_FAILED_ATTEMPTS
            or self.attempt - self.ignored_attempts >= MAX_ATTEMPTS
        )

    def requeue_or_fail(self) -> None:
        """Queue an interrupted job again, or fail it when its attempts are exhausted."""
        if self.has_exhausted_attempts:
            message = _("The job was interrupted %(times)d times and never finished.") % {
                "times": self.attempt
            }
            self.move("give_up", reason=str(message), error_code="worker_lost", error_message=str(message))
        else:
            self.move("requeue", reason=f"attempt {self.attempt + 1}")

    @property
    def error(self) -> dict[str, str] | None:
        """Return code and message of a failed job, or None."""
        if self.state != State.FAILED:
            return None
        return {"code": self.error_code or "internal_error", "message": self.error_message}

    @property
    def is_over(self) -> bool:
        return self.state in TERMINAL

    @property
    def percent(self) -> int:
        """Return the whole percent of the current phase; 0 if its total is unknown."""
        return min(100, 100 * self.step // self.total_steps) if self.total_steps else 0

    def checkpoint_folder(self) -> Path:
        """Return the folder of a training's checkpoints, shared by all attempts."""
        return Path(settings.DATA_DIR) / "checkpoints" / f"job-{self.pk}"

    def log_tail(self, lines: int = 200) -> str:
        """Return the last lines of its log; "" before its first attempt."""
        path = Path(settings.DATA_DIR) / "logs" / f"job-{self.pk}.log"
        if not path.exists():
            return ""
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - lines * LOG_LINE_BYTES))
            text = file.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def position(self) -> int | None:
        """Return its position in the queue, 1 for the next to be claimed; None if it does not wait."""
        if self.state != State.QUEUED:
            return None
        order = list(Job.objects.claim_order(self.queue))
        return order.index(self.pk) + 1 if self.pk in order else None

    def set_priority(self, priority: Priority, by: User) -> None:
        """Change the priority of a waiting job, or raise IllegalMove."""
        with transaction.atomic():
            if not Job.objects.filter(pk=self.pk, state__in=WAITING).update(priority=priority):
                raise IllegalMove(_("This job is no longer waiting, so its priority cannot be changed."))
            self.refresh_from_db(fields=["state", "priority"])
            state = State(self.state)
            self.record("prioritise", state, state, actor=str(by), text=str(priority.label))
