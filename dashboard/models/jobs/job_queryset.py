"""Queries and claims on the queue: the order, expired leases, retries and lost wake-ups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, models, transaction
from django.db.models.functions import Now

from dashboard.models.accounts.project import Project, ProjectQuerySet, Role, refusal_for
from dashboard.models.jobs.job_state import LEASE, LIVE, IllegalMove, State, db_now
from dashboard.models.jobs.outbox import Outbox
from dashboard.models.jobs.queue_order import WaitingJob, claim_order
from dashboard.models.jobs.worker_node import WorkerNode
from workers.contract.specs import needs_4bit

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User
    from dashboard.models.jobs.job import Job

# A worker that loses the race for a job tries the next one, up to this many.
CANDIDATES = 50
STARTS_REMEMBERED = timedelta(hours=24)


class JobQuerySet(ProjectQuerySet["Job"]):
    """Jobs of a queue, by state and lease."""

    def submit(
        self,
        kind: Job.Kind,
        spec: dict[str, Any],
        *,
        project: Project | None,
        by: User | None,
        idempotency_key: str = "",
    ) -> Job:
        """Create a queued job with its event and wake-up in one transaction. Needs no broker."""
        kinds, queues = self.model.Kind, self.model.Queue
        # An inference job lasts as long as people chat, so that it must not occupy a worker for other work.
        queue = queues.SERVE if kind == kinds.SERVE else queues.CPU
        if kind in (kinds.TRAIN, kinds.EVALUATE):
            queue = queues.GPU
        with transaction.atomic():
            job = self.create(
                kind=kind,
                spec=spec,
                needs_4bit=needs_4bit(spec),
                project=project,
                created_by=by,
                queue=queue,
                idempotency_key=idempotency_key,
            )
            job.record("submit", State.QUEUED, State.QUEUED, actor=str(by or "system"))
            Outbox.objects.create(job=job)
        return job

    def fetch_to_stop(self, user: User, pk: int) -> Job:
        """Return a job that the user may stop: of a project that they edit, or an inference job of all.

        A base model without a project answers everybody, and its job starts again with the next prompt.
        """
        shared = self.filter(pk=pk, kind=self.model.Kind.SERVE, project=None).first()
        if shared is None:
            return self.fetch(user, pk, Role.EDITOR)
        if not user.may_stop_shared_jobs():
            raise PermissionDenied(refusal_for(Role.EDITOR))
        return shared

    def find_by_idempotency_key(self, project: Project, idempotency_key: str) -> Job | None:
        """Return the job of an earlier request with this Idempotency-Key, or None."""
        return (
            self.filter(project=project, idempotency_key=idempotency_key).first() if idempotency_key else None
        )

    def waiting(self, *queues: str) -> JobQuerySet:
        """Filter the claimable jobs of queues, unordered."""
        return self.filter(queue__in=queues, state=State.QUEUED, run_after__lte=db_now()).order_by()

    def claim_order(self, queue: str, *, with_4bit: bool = True) -> Iterator[int]:
        """Yield the ids of the waiting jobs of a queue in the order in which they are claimed.

        `with_4bit=False` omits jobs that need a base model in 4 bits.
        """
        rows = self.waiting(queue) if with_4bit else self.waiting(queue).filter(needs_4bit=False)
        waiting = [WaitingJob(*row) for row in rows.values_list("pk", "priority", "project", "kind")]
        if not waiting:
            return iter(())
        running = self.live().filter(queue=queue).order_by().values_list("project", flat=True)
        return claim_order(waiting, running, self.last_starts([queue])[queue])

    def last_starts(self, queues: Sequence[str]) -> dict[str, dict[int | None, float]]:
        """Return by queue when a job of each project last started, as far as that was in the last day."""
        recent = self.filter(queue__in=queues, started_at__gt=db_now(-STARTS_REMEMBERED)).order_by()
        starts: dict[str, dict[int | None, float]] = {queue: {} for queue in queues}
        for queue, project, last in recent.values_list("queue", "project").annotate(
            last=models.Max("started_at")
        ):
            starts[queue][project] = last.timestamp()
        return starts

    def idle_slots(self, queue: str, *, only_4bit: bool = False) -> int:
        """Return how many more jobs of a queue could run now; `only_4bit`: with a base model in 4 bits."""
        nodes = WorkerNode.objects.supporting_4bit() if only_4bit else WorkerNode.objects.all()
        takers = nodes.slots_by_worker(queue)
        busy = self.live().filter(worker__in=takers, queue=queue).count()
        return max(0, sum(takers.values()) - busy)

    def wake_idle(self, queue: str) -> None:
        """Write a wake-up for as many of these waiting jobs as the queue has idle workers."""
        everything, waiting = self.model.objects, self.waiting(queue).order_by("pk")
        idle = everything.idle_slots(queue)
        # A job that needs 4 bits must not wake workers again and again that cannot run it.
        able = everything.idle_slots(queue, only_4bit=True)
        packed = waiting.filter(needs_4bit=True)[:able]
        for job in [*packed, *waiting.filter(needs_4bit=False)[:idle]][:idle]:
            Outbox.objects.create(job=job)

    def live(self) -> JobQuerySet:
        """Filter jobs that a worker holds."""
        return self.filter(state__in=LIVE)

    def claim(
        self, queue: str, *, worker: str, slot: str | None, host: str, pid: int, pid_started: float
    ) -> Job | None:
        """Claim the next job of `queue`, or return None. Safe with any number of concurrent workers."""
        node = WorkerNode.objects.filter(name=worker).first()
        if node and node.paused_at:
            return None
        with_4bit = node is not None and node.loads_4bit
        for pk in islice(self.claim_order(queue, with_4bit=with_4bit), CANDIDATES):
            candidate = self.filter(pk=pk).first()
            if candidate is None:
                continue  # deleted with its project
            try:
                with transaction.atomic():
                    if node and node.is_paused_now():
                        return None
                    candidate.move(
                        "claim",
                        actor=worker,
                        attempt=models.F("attempt") + 1,
                        failed_attempts=models.F("failed_attempts") + 1,
                        worker=worker,
                        slot=slot,
                        host=host,
                        pid=pid,
                        pid_started=pid_started,
                        child_pid=None,
                        lease_until=db_now(LEASE),
                        started_at=Now(),
                        phase="",
                        step=0,
                        eta_seconds=None,
                    )
            except IllegalMove:
                continue  # another worker claimed it first
            except IntegrityError:
                return None  # the slot is held by another live job
            candidate.refresh_from_db()
            return candidate
        return None

    def with_expired_lease(self) -> JobQuerySet:
        """Filter live jobs whose lease has expired."""
        return self.live().filter(lease_until__lt=db_now())

    def recoverable(self) -> JobQuerySet:
        """Restrict expired leases to those that their workers could have renewed all the time."""
        attended = models.Exists(WorkerNode.objects.dispatchers_online())
        return self.filter(attended, ~models.Exists(WorkerNode.objects.granting_grace()))

    def due_for_retry(self) -> JobQuerySet:
        """Filter interrupted jobs whose back-off is over."""
        return self.filter(state=State.INTERRUPTED, run_after__lte=db_now())

    def unclaimed(self, seconds: int = 30) -> JobQuerySet:
        """Filter waiting jobs that no worker has claimed within `seconds` of their last wake-up.

        Half a minute, so that a job starts within a minute if the broker has lost its wake-up.
        """
        overdue = db_now(timedelta(seconds=-seconds))
        on_its_way = Outbox.objects.filter(job=models.OuterRef("pk")).filter(
            models.Q(sent_at=None) | models.Q(sent_at__gt=overdue)
        )
        return self.filter(~models.Exists(on_its_way), state=State.QUEUED, run_after__lte=overdue)
