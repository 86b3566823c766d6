"""`manage.py dispatch`: the loop that wakes workers, queues interrupted jobs again and expires lost leases.

Two may run; one leads. The only program that publishes to the broker, from a thread of its own: a broker that
takes a call and stays silent must hold up nothing else. What ages out is `dashboard.models.retention`'s.
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
from collections.abc import Callable, Iterator
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
from dashboard.models.job_state import db_now
from dashboard.models.measuring import measure
from dashboard.models.retention import sweep
from dashboard.models.worker_node import DISPATCHERS_OFFLINE_AFTER
from workers.abandoned import release_orphaned_jobs
from workers.celery import app
from workers.identity import here

logger = logging.getLogger(__name__)
BEAT_SECONDS = 1.0
TICK_SECONDS = 15.0
WAKE_SECONDS = 3.0
BROKER_RETRY_SECONDS = 5.0
BROKER_ASK_SECONDS = 5.0
BATCH = 100
# The slow work is done in portions, so that a large or slow disk never holds up the queue.
CHORES_SECONDS = 60.0
MEASURE_SECONDS = 300.0
PORTION_SECONDS = 0.2


class Command(BaseCommand):
    """Runs until it is told to stop."""

    help = "Publish wake-ups for waiting jobs, and recover jobs whose worker has died."

    def handle(self, *_args: object, **_options: object) -> None:
        """Beat once a second, and publish beside it, until SIGTERM or SIGINT."""
        stop = threading.Event()

        def note(_number: int, _frame: FrameType | None) -> None:
            stop.set()

        signal.signal(signal.SIGTERM, note)
        signal.signal(signal.SIGINT, note)
        dispatcher = Dispatcher()
        publishing = (dispatcher.publish, stop, dispatcher.wait_for_news)
        threading.Thread(target=repeat, args=publishing, daemon=True).start()
        repeat(dispatcher.beat, stop, lambda: stop.wait(BEAT_SECONDS))
        dispatcher.leave()


def repeat(duty: Callable[[], object], stop: threading.Event, rest: Callable[[], object]) -> None:
    """Do it again after each rest; a round that fails is logged and the next one tried."""
    while not stop.is_set():
        try:
            duty()
        except Exception:
            logger.exception("the dispatcher could not do its round")
            close_old_connections()
        rest()


class Dispatcher:
    """One dispatcher's rounds. Holds no state that a restart would miss."""

    def __init__(self) -> None:
        self.host = socket.gethostname()
        self.place = here()
        self.name = f"dispatcher-{os.getpid()}@{self.place or self.host}"
        self.leads = self.broker_silent = False
        self.began = timezone.now()
        self.last_tick = self.last_wake = self.ask_broker_from = 0.0
        self.chores: Iterator[None] | None = None
        self.chores_began = -CHORES_SECONDS
        self.measure_due = 0.0
        self.news = threading.Event()  # the outbox has something that should not wait

    def register(self) -> None:
        """Say that it is there. A predecessor on this machine that was killed leads no longer."""
        node = {
            "kind": WorkerNode.Kind.DISPATCHER,
            "host": self.host,
            "pid": os.getpid(),
            "started_at": Now(),
            # Not yet heard from: it is no proof that holders could reach the database.
            "heartbeat_at": db_now(-2 * DISPATCHERS_OFFLINE_AFTER),
        }
        WorkerNode.objects.update_or_create(name=self.name, defaults=node)
        WorkerNode.objects.record_dispatcher_heartbeat(self.name)
        if self.place is None:
            return
        beginning = f"@{self.place.earlier_starts}"
        others = WorkerNode.objects.filter(kind=WorkerNode.Kind.DISPATCHER, stopped_at=None)
        for other in others.filter(name__contains=beginning).exclude(name=self.name):
            if not (other.name.endswith(f"@{self.place}") and psutil.pid_exists(other.pid)):
                others.filter(pk=other.pk, pid=other.pid).update(stopped_at=Now(), leads_until=None)

    def beat(self) -> None:
        """Each second: lead, recover what is lost, queue what is due. Each 15 s the tick."""
        now = time.monotonic()
        if not WorkerNode.objects.record_dispatcher_heartbeat(self.name):
            self.register()
        # Whether it leads or not: only who runs beside a dead process knows that it is dead.
        release_orphaned_jobs()
        self.leads = WorkerNode.objects.acquire_lead(self.name)
        if not self.leads:
            return
        for job in Job.objects.with_expired_lease().recoverable():
            self.recover(job)
        for job in Job.objects.due_for_retry()[:BATCH]:
            with contextlib.suppress(IllegalMove, Job.DoesNotExist):  # cancelled or deleted in between
                job.requeue_or_fail()
                self.news.set()
        self.wake_past_paused()
        if now - self.last_wake >= WAKE_SECONDS:
            self.last_wake = now
            self.wake_again()
        if now - self.last_tick >= TICK_SECONDS:
            self.last_tick = now
            self.tick()
        self.do_chores()

    def wait_for_news(self) -> None:
        """The rest between two looks into the outbox."""
        self.news.wait(BEAT_SECONDS)
        self.news.clear()

    def publish(self) -> int:
        """Send the wake-ups that wait in the outbox; how many went out. Notes whether the broker answers."""
        entries = list(Outbox.objects.unsent()[:BATCH]) if self.leads else []
        now = time.monotonic()
        if now < self.ask_broker_from and (self.broker_silent or not entries):
            return 0
        sent: list[int] = []
        try:
            for entry in entries:
                wake(entry.job)
                sent.append(entry.pk)
            if not entries:
                ask_broker()
        except (OperationalError, RedisError, OSError) as error:
            logger.warning(
                "the broker cannot be reached, %s wake-ups wait: %s", len(entries) - len(sent), error
            )
            self._note_broker(silent=True)
        else:
            self._note_broker(silent=False)
        Outbox.objects.mark_sent(sent)
        return len(sent)

    def _note_broker(self, *, silent: bool) -> None:
        self.broker_silent = silent
        self.ask_broker_from = time.monotonic() + (BROKER_RETRY_SECONDS if silent else BROKER_ASK_SECONDS)
        mine = WorkerNode.objects.filter(name=self.name)
        if silent:
            mine.filter(broker_silent_since=None).update(broker_silent_since=Now())
        else:
            mine.exclude(broker_silent_since=None).update(broker_silent_since=None)

    def tick(self) -> None:
        """Note disk and clock, inspect models that are new or counted otherwise, move studies on."""
        WorkerNode.objects.update_facts(self.name, free_bytes=shutil.disk_usage(settings.DATA_DIR).free)
        for base_model in BaseModel.objects.uninspected():
            if base_model.local_folder().is_dir():
                base_model.inspect()
        for base_model in BaseModel.objects.outdated(self.began):
            if Path(base_model.path).is_dir():
                base_model.recount()
        for study in Study.objects.unfinished():
            study.advance()

    def recover(self, job: Job) -> None:
        """Take a job from a holder that is still silent now that the row is locked."""
        try:
            with transaction.atomic():
                Job.objects.with_expired_lease().recoverable().select_for_update().get(pk=job.pk).recover(
                    "Its worker was not heard from in time."
                )
        except (IllegalMove, Job.DoesNotExist):
            return
        logger.warning("%s was lost and will be queued again", job)

    def wake_again(self) -> None:
        """A wake-up may have been lost on its way; only idle nodes need another one."""
        for queue in Job.Queue:
            Job.objects.unclaimed().wake_idle(queue)

    def wake_past_paused(self) -> None:
        """A node that is paused, or cannot do what waits, swallows wake-ups, so its idle neighbours get one a
        second until they work."""
        paused = WorkerNode.objects.alive().exclude(paused_at=None)
        queues = set(paused.values_list("queue", flat=True))
        packing = WorkerNode.objects.supporting_4bit().values_list("queue", flat=True)
        queues |= {queue for queue in packing if Job.objects.waiting(queue).filter(needs_4bit=True).exists()}
        # While the broker is away they would pile up.
        if not queues or Outbox.objects.unsent().exists():
            return
        for queue in queues:
            Job.objects.wake_idle(queue)

    def do_chores(self) -> None:
        """A portion of the slow work: clear what has aged out or was asked to go, and measure the rest."""
        now = time.monotonic()
        if self.chores is None:
            rested = now - self.chores_began
            if rested < WAKE_SECONDS or (rested < CHORES_SECONDS and not CleanUp.objects.due().exists()):
                return
            self.chores_began = now
            self.chores = self._chores()
        for _step in self.chores:
            if time.monotonic() - now > PORTION_SECONDS:
                return
        self.chores = None

    def _chores(self) -> Iterator[None]:
        yield from sweep()
        clean_ups = list(CleanUp.objects.due())
        for clean_up in clean_ups:
            yield from clean_up.run()
        if clean_ups or time.monotonic() >= self.measure_due:
            self.measure_due = time.monotonic() + MEASURE_SECONDS
            yield from measure()

    def leave(self) -> None:
        """Free the lead at once, so that another dispatcher need not wait for the lease."""
        WorkerNode.objects.filter(name=self.name).update(stopped_at=Now(), leads_until=None)


def wake(job: Job) -> None:
    """Publish one wake-up. Twice is harmless: the row decides."""
    app.send_task("workers.tasks.work", args=[job.pk], queue=job.queue)


def ask_broker() -> None:
    """One real ping; an error when there is no answer within the socket's time limit."""
    with app.connection_for_write() as connection, connection.channel() as channel:
        channel.client.ping()  # type: ignore[attr-defined]
