"""`manage.py dispatch`: wake workers, queue interrupted jobs again, recover lost ones, and clean up.

Two may run; one leads. Its chores run in four loops, so that a silent broker, a slow disk or a slow receiver
of events delays only its own loop. The only program that publishes to the broker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil
from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import close_old_connections, transaction
from django.db.models.functions import Now
from django.utils import timezone
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from dashboard.models import BaseModel, CleanUp, IllegalMove, Job, Outbox, Study, WorkerNode
from dashboard.models.jobs.job_state import db_now
from dashboard.models.jobs.worker_node import DISPATCHERS_OFFLINE_AFTER
from dashboard.models.operations.retention import sweep
from dashboard.models.operations.storage_measurement import measure
from workers.celery import app
from workers.supervision.orphaned_jobs import release_orphaned_jobs
from workers.supervision.process_identity import here
from workers.supervision.webhooks import deliver_webhooks

logger = logging.getLogger(__name__)
LOOP_SECONDS = 1.0
BROKER_RETRY_SECONDS = 5.0
BROKER_PING_SECONDS = 5.0
BATCH = 100


class Command(BaseCommand):
    """Runs until SIGTERM or SIGINT."""

    help = "Publish wake-ups for waiting jobs, and recover jobs whose worker has died."
    # They would load every page for a process that shows none.
    requires_system_checks = []

    def handle(self, *_args: object, **_options: object) -> None:
        """Run the loops, that of the queue in the main thread."""
        stop = threading.Event()

        def request_stop(_number: int, _frame: FrameType | None) -> None:
            stop.set()

        signal.signal(signal.SIGTERM, request_stop)
        signal.signal(signal.SIGINT, request_stop)
        dispatcher = Dispatcher()
        for chores in (dispatcher.publishing_chores, dispatcher.clean_up_chores, dispatcher.webhook_chores):
            threading.Thread(target=run_chores, args=(chores, stop), daemon=True).start()
        run_chores(dispatcher.queue_chores, stop)
        dispatcher.leave()


@dataclass(frozen=True)
class Chore:
    """A function and its interval."""

    run: Callable[[], object]
    seconds: float = LOOP_SECONDS


def run_chores(chores: Iterable[Chore], stop: threading.Event) -> None:
    """Run each chore at its interval; log one that fails and go on with the others."""
    due = dict.fromkeys(chores, 0.0)
    while not stop.is_set():
        for chore in due:
            if time.monotonic() < due[chore]:
                continue
            due[chore] = time.monotonic() + chore.seconds
            try:
                chore.run()
            except Exception:
                logger.exception("the dispatcher failed in %s", chore.run.__name__)
                close_old_connections()
        stop.wait(LOOP_SECONDS)


class Dispatcher:
    """The chores of one dispatcher. A restart loses no state."""

    def __init__(self) -> None:
        self.host = socket.gethostname()
        self.place = here()
        self.name = f"dispatcher-{os.getpid()}@{self.place or self.host}"
        self.leads = self.broker_silent = False
        self.started = timezone.now()
        self.next_broker_ping = 0.0
        # Only the heartbeat and the ping of the broker run without the lead.
        self.queue_chores = (
            Chore(self.beat, 2.0),
            Chore(self.recover_jobs, 2.0),
            Chore(self.wake_past_paused, 2.0),
            Chore(self.wake_again, 3.0),
            Chore(self.tick, 15.0),
        )
        self.publishing_chores = (Chore(self.publish),)
        self.webhook_chores = (Chore(self.deliver_webhooks, 2.0),)
        self.clean_up_chores = (
            Chore(self.carry_out_clean_ups, 3.0),
            Chore(self.sweep, 60.0),
            Chore(self.measure, 300.0),
        )

    def register(self) -> None:
        """Write the row, and end the lead of a killed dispatcher of this machine."""
        node = {
            "kind": WorkerNode.Kind.DISPATCHER,
            "host": self.host,
            "pid": os.getpid(),
            "started_at": Now(),
            # Before its first heartbeat: a new row is no proof that workers can reach the database.
            "heartbeat_at": db_now(-2 * DISPATCHERS_OFFLINE_AFTER),
        }
        WorkerNode.objects.update_or_create(name=self.name, defaults=node)
        WorkerNode.objects.record_dispatcher_heartbeat(self.name)
        if self.place is None:
            return
        machine = f"@{self.place.earlier_starts}"
        others = WorkerNode.objects.filter(kind=WorkerNode.Kind.DISPATCHER, stopped_at=None)
        for other in others.filter(name__contains=machine).exclude(name=self.name):
            if not (other.name.endswith(f"@{self.place}") and psutil.pid_exists(other.pid)):
                others.filter(pk=other.pk, pid=other.pid).update(stopped_at=Now(), leads_until=None)

    def beat(self) -> None:
        """Write the heartbeat, release the orphaned jobs of this machine, and take the lead if it is free."""
        if not WorkerNode.objects.record_dispatcher_heartbeat(self.name):
            self.register()
        # Also without the lead: only a process of the same place can see that a holder died.
        release_orphaned_jobs()
        self.leads = WorkerNode.objects.acquire_lead(self.name)

    def recover_jobs(self) -> None:
        """Recover jobs whose lease has expired, and queue interrupted ones whose back-off is over."""
        if not self.leads:
            return
        # The whole question is expensive, and almost always answered by its cheap half.
        if Job.objects.with_expired_lease().exists():
            for job in Job.objects.with_expired_lease().recoverable():
                self.recover(job)
        for job in Job.objects.due_for_retry()[:BATCH]:
            with contextlib.suppress(IllegalMove, Job.DoesNotExist):  # cancelled or deleted in between
                job.requeue_or_fail()

    def publish(self) -> int:
        """Send the wake-ups of the outbox and return their count; record whether the broker answers."""
        waiting = Outbox.objects.unsent().values_list("pk", "job", "job__queue")
        entries = list(waiting[:BATCH]) if self.leads else []
        now = time.monotonic()
        if now < self.next_broker_ping and (self.broker_silent or not entries):
            return 0
        sent: list[int] = []
        try:
            for pk, job, queue in entries:
                wake(job, queue)
                sent.append(pk)
            if not entries:
                ping_broker()
        except (OperationalError, RedisError, OSError) as error:
            logger.warning(
                "the broker cannot be reached, %s wake-ups wait: %s", len(entries) - len(sent), error
            )
            self._record_broker(silent=True)
        else:
            self._record_broker(silent=False)
        Outbox.objects.mark_sent(sent)
        return len(sent)

    def deliver_webhooks(self) -> None:
        """Send due events to the webhooks."""
        if self.leads:
            deliver_webhooks()

    def _record_broker(self, *, silent: bool) -> None:
        self.broker_silent = silent
        self.next_broker_ping = time.monotonic() + (BROKER_RETRY_SECONDS if silent else BROKER_PING_SECONDS)
        mine = WorkerNode.objects.filter(name=self.name)
        if silent:
            mine.filter(broker_silent_since=None).update(broker_silent_since=Now())
        else:
            mine.exclude(broker_silent_since=None).update(broker_silent_since=None)

    def tick(self) -> None:
        """Record disk and clock, inspect base models that are new or outdated, and advance studies."""
        if not self.leads:
            return
        WorkerNode.objects.update_facts(self.name, free_bytes=shutil.disk_usage(settings.DATA_DIR).free)
        for base_model in BaseModel.objects.uninspected():
            if base_model.local_folder().is_dir():
                base_model.inspect()
        for base_model in BaseModel.objects.outdated(self.started):
            if Path(base_model.path).is_dir():
                base_model.recount()
        for study in Study.objects.unfinished():
            study.advance()

    def recover(self, job: Job) -> None:
        """Take a job from its holder if the lease is still expired once the row is locked."""
        try:
            with transaction.atomic():
                Job.objects.with_expired_lease().recoverable().select_for_update().get(pk=job.pk).recover(
                    "Its worker was not heard from in time."
                )
        except (IllegalMove, Job.DoesNotExist):
            return
        logger.warning("%s was lost and will be queued again", job)

    def wake_again(self) -> None:
        """Wake idle nodes for jobs whose wake-up may be lost."""
        if self.leads:
            for queue in set(Job.objects.unclaimed().order_by().values_list("queue", flat=True)):
                Job.objects.unclaimed().wake_idle(queue)

    def wake_past_paused(self) -> None:
        """Wake idle nodes every two seconds while a node that cannot run the jobs takes their wake-ups."""
        if not self.leads:
            return
        nodes = WorkerNode.objects.alive().exclude(queue="").exclude(paused_at=None, loads_4bit=False)
        found = set(nodes.order_by().values_list("queue", "paused_at", "loads_4bit"))
        queues = {queue for queue, paused_at, _loads_4bit in found if paused_at}
        quantizing = {queue for queue, _paused_at, loads_4bit in found if loads_4bit}
        queues |= {
            queue for queue in quantizing if Job.objects.waiting(queue).filter(needs_4bit=True).exists()
        }
        # During an outage of the broker wake-ups would pile up.
        if not queues or Outbox.objects.unsent().exists():
            return
        for queue in queues:
            Job.objects.wake_idle(queue)

    def carry_out_clean_ups(self) -> None:
        """Carry out the deletions that users requested, and measure the folders again."""
        requests = list(CleanUp.objects.due()) if self.leads else []
        for request in requests:
            self._while_leading(request.run())
        if requests:
            self.measure()

    def sweep(self) -> None:
        """Delete what has expired, see `dashboard.models.operations.retention`."""
        self._while_leading(sweep())

    def measure(self) -> None:
        """Measure the sizes of the installation's folders."""
        self._while_leading(measure())

    def _while_leading(self, steps: Iterable[object]) -> None:
        for _step in steps:
            if not self.leads:
                return

    def leave(self) -> None:
        """Free the lead at once, so that another dispatcher need not wait for the lease."""
        WorkerNode.objects.filter(name=self.name).update(stopped_at=Now(), leads_until=None)


def wake(job: int, queue: str) -> None:
    """Publish one wake-up. A second one is harmless: workers claim jobs in the database."""
    app.send_task("workers.tasks.work", args=[job], queue=queue)


def ping_broker() -> None:
    """Ping the broker once. Raises an error if it does not answer within the socket's time limit."""
    with app.connection_for_write() as connection, connection.channel() as channel:
        channel.client.ping()  # type: ignore[attr-defined]
