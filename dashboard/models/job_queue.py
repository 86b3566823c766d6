"""The queue as claimers, the dispatcher and pages ask for it: whose turn, who is lost, who was not woken."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from django.db import IntegrityError, models, transaction
from django.db.models.functions import Now

from dashboard.models.job_state import LEASE, LIVE, IllegalMove, State, db_now
from dashboard.models.outbox import Outbox
from dashboard.models.project import Project, ProjectQuerySet
from dashboard.models.queue_order import WaitingJob, claim_order
from dashboard.models.worker_node import WorkerNode
from workers.specs import needs_4bit

if TYPE_CHECKING:
    from dashboard.models.job import Job
    from dashboard.models.user import User

# A claimer that loses a race tries the next one; with this many it has lost to a whole installation.
CANDIDATES = 50
STARTS_REMEMBERED = timedelta(hours=24)


class JobQuerySet(ProjectQuerySet["Job"]):
    """Jobs as the queue, the dispatcher and the pages ask for them."""

    def submit(
        self,
        kind: Job.Kind,
        spec: dict[str, Any],
        *,
        project: Project | None,
        by: User | None,
        idempotency_key: str = "",
    ) -> Job:
        """Queue a job: row, event and outbox entry in one transaction. Needs no broker."""
        kinds, queues = self.model.Kind, self.model.Queue
        queue = queues.GPU if kind in (kinds.TRAIN, kinds.EVALUATE) else queues.CPU
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

    def find_by_idempotency_key(self, project: Project, idempotency_key: str) -> Job | None:
        """The job an earlier request with this Idempotency-Key made, if any."""
        return (
            self.filter(project=project, idempotency_key=idempotency_key).first() if idempotency_key else None
        )

    def waiting(self, queue: str) -> JobQuerySet:
        """Claimable jobs of a queue, in no order."""
        return self.filter(queue=queue, state=State.QUEUED, run_after__lte=db_now()).order_by()

    def claim_order(
        self, queue: str, *, also: WaitingJob | None = None, with_4bit: bool = True
    ) -> Iterator[int]:
        """Yield the ids of the waiting jobs of a queue in the order in which they are claimed.

        `also` is added to them without a row. `with_4bit=False` omits jobs that need a base model in 4 bits.
        """
        rows = self.waiting(queue) if with_4bit else self.waiting(queue).filter(needs_4bit=False)
        waiting = [WaitingJob(*row) for row in rows.values_list("pk", "priority", "project")]
        waiting += [also] if also else []
        if not waiting:
            return iter(())
        running = self.live().filter(queue=queue).order_by().values_list("project", flat=True)
        return claim_order(waiting, running, self.last_starts(queue))

    def last_starts(self, queue: str) -> dict[int | None, float]:
        """Return when a job of each project last started, as far as that was in the last day."""
        recent = self.filter(queue=queue, started_at__gt=db_now(-STARTS_REMEMBERED)).order_by()
        starts = recent.values_list("project").annotate(last=models.Max("started_at"))
        return {project: last.timestamp() for project, last in starts}

    def idle_slots(self, queue: str, *, only_4bit: bool = False) -> int:
        """How many more jobs of a queue could be worked on now; `only_4bit`: with a base model in 4 bits."""
        nodes = WorkerNode.objects.supporting_4bit() if only_4bit else WorkerNode.objects.all()
        takers = nodes.slots_by_worker(queue)
        busy = self.live().filter(worker__in=takers, queue=queue).count()
        return max(0, sum(takers.values()) - busy)

    def wake_idle(self, queue: str) -> None:
        """Write a wake-up for as many of these waiting jobs as workers of the queue are idle for."""
        everything, waiting = self.model.objects, self.waiting(queue).order_by("pk")
        idle = everything.idle_slots(queue)
        # Where only workers are idle that cannot take it, a job that needs 4 bits would wake them for ever.
        able = everything.idle_slots(queue, only_4bit=True)
        packed = waiting.filter(needs_4bit=True)[:able]
        for job in [*packed, *waiting.filter(needs_4bit=False)[:idle]][:idle]:
            Outbox.objects.create(job=job)

    def live(self) -> JobQuerySet:
        """Jobs that a worker holds right now."""
        return self.filter(state__in=LIVE)

    def claim(
        self, queue: str, *, worker: str, slot: str | None, host: str, pid: int, pid_started: float
    ) -> Job | None:
        """Take the job of `queue` whose turn it is, or None. Safe against any number of claimers."""
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
                continue  # another worker was quicker
            except IntegrityError:
                return None  # the slot is held by another live job
            candidate.refresh_from_db()
            return candidate
        return None

    def with_expired_lease(self) -> JobQuerySet:
        """Live jobs whose holder has not renewed its lease in time."""
        return self.live().filter(lease_until__lt=db_now())

    def recoverable(self) -> JobQuerySet:
        """Of lost ones those that may be taken from their holders, which were able to renew all the time."""
        attended = models.Exists(WorkerNode.objects.dispatchers_online())
        return self.filter(attended, ~models.Exists(WorkerNode.objects.granting_grace()))

    def due_for_retry(self) -> JobQuerySet:
        """Interrupted jobs whose back-off is over."""
        return self.filter(state=State.INTERRUPTED, run_after__lte=db_now())

    def unclaimed(self, seconds: int = 30) -> JobQuerySet:
        """Waiting jobs that nobody has claimed for a while although their wake-up went out.

        Half a minute, so that a job whose wake-up a broker lost starts within a minute, its start included.
        Waiting longer between two would save little: there are never more of them than idle workers.
        """
        overdue = db_now(timedelta(seconds=-seconds))
        on_its_way = Outbox.objects.filter(job=models.OuterRef("pk")).filter(
            models.Q(sent_at=None) | models.Q(sent_at__gt=overdue)
        )
        return self.filter(~models.Exists(on_its_way), state=State.QUEUED, run_after__lte=overdue)
