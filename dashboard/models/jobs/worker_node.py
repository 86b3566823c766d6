"""Workers and dispatchers as rows with heartbeats. Pages read these and never the broker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from django.db import models, transaction
from django.db.models.functions import Now
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Caller, Project, Role
from dashboard.models.jobs.job_state import LEASE, db_now
from workers.contract.errors import SpecError

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

HEARTBEAT_SECONDS = 10
SILENT_AFTER = timedelta(seconds=45)
LEADER_LEASE = timedelta(seconds=20)
# Dispatchers send a heartbeat every two seconds, and restart within this time.
DISPATCHERS_OFFLINE_AFTER = timedelta(seconds=30)
FORGOTTEN_AFTER = timedelta(hours=24)
PAUSE_FORBIDDEN = _("Only a superuser, or a manager of all projects, can pause a worker.")
NO_4BIT_WORKER = _(
    "no connected worker has both an NVIDIA GPU and the package bitsandbytes. "
    "Install it on a machine that has the GPU, and start its worker again."
)
# A slower answer of the database is too uncertain to compare clocks.
ANSWER_SECONDS = 1.0


class WorkerNodeQuerySet(models.QuerySet["WorkerNode"]):
    """Nodes by their heartbeat."""

    def alive(self) -> WorkerNodeQuerySet:
        """Filter nodes with a recent heartbeat."""
        return self.filter(heartbeat_at__gt=db_now(-SILENT_AFTER), stopped_at=None)

    def heard_since(self, age: timedelta) -> WorkerNodeQuerySet:
        """Filter nodes with a heartbeat within `age`; annotate `is_alive`."""
        is_alive = models.Q(heartbeat_at__gt=db_now(-SILENT_AFTER), stopped_at=None)
        return self.filter(heartbeat_at__gt=db_now(-age)).annotate(is_alive=is_alive)

    def running_elsewhere(self, name: str, place: str) -> WorkerNodeQuerySet:
        """Filter live nodes of this name in another pid namespace; none if `place` is unknown."""
        others = self.alive().filter(name=name).exclude(place__in=["", place])
        return others if place else self.none()

    def accepting_jobs(self) -> WorkerNodeQuerySet:
        """Filter workers that claim jobs: alive, neither draining nor paused."""
        return self.alive().filter(kind=WorkerNode.Kind.WORKER, draining=False, paused_at=None)

    def slots_by_worker(self, queue: str) -> dict[str, int]:
        """Return the number of concurrent jobs per worker that claims jobs of a queue."""
        return dict(self.accepting_jobs().filter(queue=queue).values_list("name", "processes"))

    def count_slots(self, queue: str) -> int:
        """Return the number of jobs of a queue that can run at once."""
        return sum(self.slots_by_worker(queue).values())

    def slots_by_queue(self, queues: Sequence[str]) -> dict[str, dict[str, int]]:
        """Return the same for each of these queues that has a worker."""
        slots: dict[str, dict[str, int]] = {}
        takers = self.accepting_jobs().filter(queue__in=queues)
        for queue, name, processes in takers.values_list("queue", "name", "processes"):
            slots.setdefault(queue, {})[name] = processes
        return slots

    def device_of(self, worker: str) -> str:
        """Return the device of a worker, or "" if it is unknown."""
        return self.filter(name=worker).values_list("device", flat=True).first() or ""

    def supporting_4bit(self) -> WorkerNodeQuerySet:
        """Filter live workers that can load a base model in 4 bits."""
        return self.alive().filter(kind=WorkerNode.Kind.WORKER, loads_4bit=True)

    def may_be_paused_by(self, user: User, caller: Caller) -> bool:
        """Return whether the user may pause workers: superusers, and managers of all projects."""
        if caller is not user and not caller.projects(Role.EDITOR).exists():
            return False  # a token that only reads
        foreign = Project.objects.exclude(pk__in=caller.projects(Role.MANAGER))
        return user.is_superuser or not foreign.exists()

    def silent(self) -> WorkerNodeQuerySet:
        """Filter nodes that stopped sending heartbeats within the last day without shutting down."""
        return self.filter(
            heartbeat_at__lte=db_now(-SILENT_AFTER),
            heartbeat_at__gt=db_now(-FORGOTTEN_AFTER),
            stopped_at=None,
        )

    def leading(self) -> WorkerNodeQuerySet:
        """Filter the dispatcher that leads, if it is alive."""
        return self.alive().filter(kind=WorkerNode.Kind.DISPATCHER, leads_until__gt=db_now())

    def dispatchers_online(self) -> WorkerNodeQuerySet:
        """Filter dispatchers with a recent heartbeat. Without one, the database may have been unreachable."""
        # A range, because the clock may have been set back since.
        lately = (db_now(-DISPATCHERS_OFFLINE_AFTER), db_now(DISPATCHERS_OFFLINE_AFTER))
        return self.filter(kind=WorkerNode.Kind.DISPATCHER, heartbeat_at__range=lately)

    def granting_grace(self) -> WorkerNodeQuerySet:
        """Filter dispatchers that reconnected after an outage: workers may renew until then."""
        return self.filter(grants_grace_until__gt=Now(), grants_grace_until__lte=db_now(LEASE))

    def record_dispatcher_heartbeat(self, name: str) -> bool:
        """Record a heartbeat; False without a row. After a time without dispatchers, grant a grace period."""
        # One statement: a process that is paused halfway must not see its own heartbeat as unbroken.
        spared = models.Case(
            models.When(
                models.Exists(WorkerNode.objects.dispatchers_online()), then=models.F("grants_grace_until")
            ),
            default=db_now(LEASE),
        )
        return bool(
            self.filter(name=name).update(heartbeat_at=Now(), stopped_at=None, grants_grace_until=spared)
        )

    def with_wrong_clock(self, seconds: float) -> WorkerNodeQuerySet:
        """Filter nodes whose clock differs by more than `seconds` from the database's."""
        return self.filter(models.Q(clock_ahead__gt=seconds) | models.Q(clock_ahead__lt=-seconds))

    def record_heartbeat(self, name: str, **facts: object) -> bool:
        """Record a heartbeat of node `name`. Return False without a row."""
        return self.update_facts(name, **facts, heartbeat_at=Now())

    def update_facts(self, name: str, **facts: object) -> bool:
        """Update fields of node `name`, and its clock's difference. Return False without a row."""
        before = time.time()
        theirs = self.filter(name=name).annotate(db=Now()).values_list("db", flat=True).first()
        took = time.time() - before
        if theirs and 0 <= took < ANSWER_SECONDS:
            facts["clock_ahead"] = before + took / 2 - theirs.timestamp()
        return bool(self.filter(name=name).update(**facts))

    def register(self, name: str, **facts: object) -> None:
        """Create or update node `name` with a heartbeat; `facts` are the row's other fields."""
        self.update_or_create(name=name, defaults={**facts, "heartbeat_at": Now()})

    def acquire_lead(self, name: str) -> bool:
        """Acquire or renew the lead for dispatcher `name`; False while another one holds it."""
        free = models.Q(leads_until=None) | models.Q(leads_until__lt=db_now())
        dispatchers = self.filter(kind=WorkerNode.Kind.DISPATCHER)
        with transaction.atomic():
            # Locked, so that two dispatchers cannot both find the lead free.
            list(dispatchers.select_for_update().order_by("pk").values_list("pk"))
            if dispatchers.exclude(free).exclude(name=name).exists():
                return False
            return bool(self.filter(name=name).update(leads_until=db_now(LEADER_LEASE)))


def require_4bit_worker() -> None:
    """Raise SpecError if no worker supports a base model in 4 bits.

    Checked at the launch only: a queued run waits for such a worker.
    """
    if not WorkerNode.objects.supporting_4bit().exists():
        raise SpecError(
            "load_in_4bit", gettext("`load_in_4bit` cannot be on: %(why)s") % {"why": NO_4BIT_WORKER}
        )


class WorkerNode(models.Model):
    """A Celery worker or a dispatcher: its host, device and last heartbeat."""

    class Kind(models.TextChoices):
        WORKER = "worker", _("Worker")
        DISPATCHER = "dispatcher", _("Dispatcher")

    name = models.CharField(max_length=120, unique=True)
    kind = models.CharField(max_length=12, choices=Kind.choices, default=Kind.WORKER)
    queue = models.CharField(max_length=10, blank=True)
    host = models.CharField(max_length=120)
    pid = models.PositiveIntegerField()
    place = models.CharField(max_length=120, blank=True)  # machine and pid namespace; "" if unknown
    device = models.CharField(max_length=120, blank=True)
    memory_bytes = models.BigIntegerField(default=0)
    gpu = models.PositiveSmallIntegerField(null=True, blank=True)  # its number on that machine
    loads_4bit = models.BooleanField(default=False)  # it has CUDA and bitsandbytes
    started_at = models.DateTimeField(db_default=Now())
    heartbeat_at = models.DateTimeField(db_default=Now())
    stopped_at = models.DateTimeField(null=True, blank=True)
    draining = models.BooleanField(default=False)
    processes = models.PositiveSmallIntegerField(default=1)  # concurrent jobs
    paused_at = models.DateTimeField(null=True, blank=True)
    paused_by = models.CharField(max_length=254, blank=True)
    leads_until = models.DateTimeField(null=True, blank=True)
    # Stored, so that it also holds for other dispatchers and after a restart.
    grants_grace_until = models.DateTimeField(null=True, blank=True)
    clock_ahead = models.FloatField(null=True, blank=True)  # seconds, against the database's clock
    # Facts that the dispatcher measures, so that pages need not.
    broker_silent_since = models.DateTimeField(null=True, blank=True)
    free_bytes = models.BigIntegerField(null=True, blank=True)

    objects = WorkerNodeQuerySet.as_manager()

    class Meta:
        ordering = ["kind", "name"]

    def __str__(self) -> str:
        return self.name

    def is_paused_now(self) -> bool:
        """Return whether it is paused; the lock keeps that so until the end of the transaction."""
        paused = WorkerNode.objects.select_for_update().filter(pk=self.pk).values_list("paused_at", flat=True)
        return paused.first() is not None

    def pause(self, by: object) -> None:
        """Finish running jobs and claim no more, also after a restart, until it is resumed."""
        free = WorkerNode.objects.filter(pk=self.pk, paused_at=None)
        free.update(paused_at=Now(), paused_by=str(by)[:254])
        self.refresh_from_db()

    def resume(self) -> None:
        """Claim jobs again."""
        WorkerNode.objects.filter(pk=self.pk).update(paused_at=None, paused_by="")
        self.refresh_from_db()
