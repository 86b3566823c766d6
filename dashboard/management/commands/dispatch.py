"""`manage.py dispatch`: the loop that wakes workers, queues interrupted jobs again and expires lost leases.

Two may run; one leads. The only program that publishes to the broker.
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
from datetime import timedelta
from pathlib import Path
from types import FrameType

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import close_old_connections, transaction
from django.db.models.functions import Now
from kombu.exceptions import OperationalError

from dashboard.models import BaseModel, DatasetVersion, IllegalMove, Job, Outbox, State, WorkerNode
from dashboard.models.job import LEASE
from workers.celery import app

logger = logging.getLogger(__name__)
BEAT_SECONDS = 1.0
TICK_SECONDS = 15.0
BROKER_RETRY_SECONDS = 5.0
BATCH = 100
UPLOAD_KEPT = timedelta(hours=24)


class Command(BaseCommand):
    """Runs until it is told to stop."""

    help = "Publish wake-ups for waiting jobs, and recover jobs whose worker has died."

    def handle(self, *_args: object, **_options: object) -> None:
        """Beat once a second; a failing beat is logged and the next one tried."""
        stop = threading.Event()

        def note(_number: int, _frame: FrameType | None) -> None:
            stop.set()

        signal.signal(signal.SIGTERM, note)
        signal.signal(signal.SIGINT, note)
        dispatcher = Dispatcher()
        while not stop.is_set():
            try:
                dispatcher.beat()
            except Exception:
                logger.exception("the dispatcher could not do its round")
                close_old_connections()
            stop.wait(BEAT_SECONDS)
        dispatcher.leave()


class Dispatcher:
    """One dispatcher's rounds. Holds no state that a restart would miss."""

    def __init__(self) -> None:
        self.name = f"dispatcher-{os.getpid()}@{socket.gethostname()}"
        self.last_tick = self.last_beat = 0.0
        self.expire_from = self.broker_quiet_until = 0.0
        WorkerNode.objects.beat(
            self.name,
            kind=WorkerNode.Kind.DISPATCHER,
            host=socket.gethostname(),
            pid=os.getpid(),
            stopped_at=None,
        )

    def beat(self) -> None:
        """Each second: publish, and queue again what is due. Each 15 s: the slower round."""
        now = time.monotonic()
        if self.last_beat and now - self.last_beat > 2 * TICK_SECONDS:
            # This process, the machine or the database was away: holders get a full lease to report back.
            self.expire_from = now + LEASE.total_seconds()
        WorkerNode.objects.filter(name=self.name).update(heartbeat_at=Now())
        # Only now: while the database was away, nobody could renew a lease either.
        self.last_beat = now
        if not WorkerNode.objects.lead(self.name):
            return
        for job in Job.objects.due_again()[:BATCH]:
            with contextlib.suppress(IllegalMove):  # somebody has cancelled it in between
                job.try_again()
        self.wake_past_paused()
        self.publish()
        if now - self.last_tick >= TICK_SECONDS:
            self.last_tick = now
            self.tick(may_expire=now >= self.expire_from)

    def publish(self) -> int:
        """Send the wake-ups that wait in the outbox; how many went out."""
        if time.monotonic() < self.broker_quiet_until:
            return 0
        sent: list[int] = []
        try:
            for entry in Outbox.objects.unsent()[:BATCH]:
                wake(entry.job)
                sent.append(entry.pk)
        except (OperationalError, OSError) as error:
            self.broker_quiet_until = time.monotonic() + BROKER_RETRY_SECONDS
            logger.warning("the broker cannot be reached, %s waits: %s", entry, error)
        Outbox.objects.mark_sent(sent)
        return len(sent)

    def tick(self, *, may_expire: bool) -> None:
        """Inspect new built-in models, recover lost jobs, wake workers again, clear leftovers."""
        for base_model in BaseModel.objects.uninspected():
            if base_model.local_folder().is_dir():
                base_model.inspect()
        if may_expire:
            for job in Job.objects.lost():
                self.recover(job)
        self._wake_again()
        clear_leftovers()

    def recover(self, job: Job) -> None:
        """Take a job from a holder that is still silent now that the row is locked."""
        try:
            with transaction.atomic():
                Job.objects.lost().select_for_update().get(pk=job.pk).abandon(
                    "Its worker was not heard from in time."
                )
        except (IllegalMove, Job.DoesNotExist):
            return
        logger.warning("%s was lost and will be queued again", job)

    def _wake_again(self) -> None:
        """A wake-up may have been lost on its way; only idle nodes need another one."""
        for queue in Job.Queue:
            for job in Job.objects.unanswered().filter(queue=queue)[: Job.objects.idle_slots(queue)]:
                Outbox.objects.create(job=job)

    def wake_past_paused(self) -> None:
        """A paused node swallows wake-ups, so its idle neighbours get one a second until they work."""
        paused = WorkerNode.objects.alive().exclude(paused_at=None)
        queues = set(paused.values_list("queue", flat=True))
        # While the broker is away they would pile up.
        if not queues or Outbox.objects.unsent().exists():
            return
        for queue in queues:
            for job in Job.objects.waiting(queue).order_by("pk")[: Job.objects.idle_slots(queue)]:
                Outbox.objects.create(job=job)

    def leave(self) -> None:
        """Free the lead at once, so that another dispatcher need not wait for the lease."""
        WorkerNode.objects.filter(name=self.name).update(stopped_at=Now(), leads_until=None)


def wake(job: Job) -> None:
    """Publish one wake-up. Twice is harmless: the row decides."""
    app.send_task("workers.tasks.work", args=[job.pk], queue=job.queue)


def clear_leftovers() -> None:
    """Remove what nobody reads any more: work folders, checkpoints and uploads of what has ended."""
    live = {f"job-{pk}-{attempt}" for pk, attempt in Job.objects.live().values_list("pk", "attempt")}
    for folder in (Path(settings.DATA_DIR) / "work").glob("job-*"):
        if folder.name not in live and _age(folder) > LEASE:
            shutil.rmtree(folder, ignore_errors=True)
    # A job that is not live may still be continued from its checkpoint.
    kept = {f"job-{pk}" for pk in Job.objects.keeping_checkpoint().values_list("pk", flat=True)}
    for folder in (Path(settings.DATA_DIR) / "checkpoints").glob("job-*"):
        if folder.name not in kept and _age(folder) > LEASE:
            shutil.rmtree(folder, ignore_errors=True)
    old = [
        path for path in Path(settings.UPLOAD_DIR).iterdir() if path.is_file() and _age(path) > UPLOAD_KEPT
    ]
    # A failed import may be asked for again; after a success or a stop nobody reads the upload.
    read_again = DatasetVersion.objects.exclude(job__state__in=[State.SUCCEEDED, State.CANCELLED])
    known = set(read_again.filter(upload__in=[path.name for path in old]).values_list("upload", flat=True))
    for path in old:
        if path.name not in known:
            path.unlink(missing_ok=True)


def _age(path: Path) -> timedelta:
    try:
        return timedelta(seconds=max(0.0, time.time() - path.stat().st_mtime))
    except FileNotFoundError:
        return timedelta()
