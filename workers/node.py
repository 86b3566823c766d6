"""The life signs of a Celery node: its row, its heartbeat, and the flag that tells its pool to drain.

Runs in the node's main process; the pool processes only read the flag.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import socket
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from celery.signals import worker_init, worker_ready, worker_shutdown, worker_shutting_down
from django.conf import settings
from django.db import close_old_connections, connection
from django.db.models.functions import Now

from dashboard.models import Job, WorkerNode
from dashboard.models.worker_node import HEARTBEAT_SECONDS
from workers import slots
from workers.abandoned import release_abandoned_jobs
from workers.identity import here
from workers.outage import hang_up

logger = logging.getLogger(__name__)
_stop = threading.Event()
# A pool process that was killed holds its job until somebody looks.
WATCH_SECONDS = 2.0
# A query that has not come back for so long hangs.
SILENT_SECONDS = 60.0
# How long a new pool process waits for the end of a look, which may hang.
FORK_SECONDS = 30.0


class Asking:
    """Held while this process asks the database beside the thread that forks the pool's processes.

    SQLite notes in memory which locks a process holds. One that was forked in the middle of a query inherits
    the note without the lock, and finds its database locked for ever. So forking waits.
    """

    def __init__(self) -> None:
        self.lock, self.here = threading.Lock(), threading.local()
        os.register_at_fork(before=self._wait, after_in_parent=self._go_on, after_in_child=self._go_on)

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_error: object) -> None:
        # Open while a process is forked, a connection would be that process's too.
        if connection.vendor == "sqlite":
            connection.close()
        self.lock.release()

    def _wait(self) -> None:
        self.here.waited = self.lock.acquire(timeout=FORK_SECONDS)

    def _go_on(self) -> None:
        if self.here.waited:
            self.lock.release()


asking = Asking()


def _flag(main_pid: int) -> Path:
    # Containers share the folder, and in each of them the node may be process 1.
    return Path(settings.DATA_DIR) / "run" / slots.name_of(f"draining-{main_pid}").replace("/", "-")


def is_draining() -> bool:
    """Whether the node of this pool process has been told to shut down."""
    return _flag(os.getppid()).exists()


def describe_device(queue: str) -> tuple[str, int, int | None]:
    """Name and memory in bytes of what this node computes on, and the GPU's number on this machine."""
    if queue == Job.Queue.GPU:
        gpu = _first_gpu()
        if gpu:
            return gpu
    cores = len(os.sched_getaffinity(0))
    return f"CPU, {cores} cores ({platform.machine()})", psutil.virtual_memory().total, None


def loads_4bit(gpu: int | None) -> bool:
    """Whether this node can keep a base model in 4 bits: CUDA and bitsandbytes are there."""
    return gpu is not None and importlib.util.find_spec("bitsandbytes") is not None


def _first_gpu() -> tuple[str, int, int] | None:
    """The GPU that this process may use, without touching CUDA."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        if wanted.startswith("GPU-"):
            handle = pynvml.nvmlDeviceGetHandleByUUID(wanted)
        elif wanted.isdigit():
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(wanted))
        else:
            return None
        memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
        return str(pynvml.nvmlDeviceGetName(handle)), memory, int(pynvml.nvmlDeviceGetIndex(handle))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


@worker_init.connect  # type: ignore[untyped-decorator]
def forget_drain(**_kwargs: object) -> None:
    """A node that was killed while it drained left a flag; in a container the next one has the same pid."""
    _flag(os.getpid()).unlink(missing_ok=True)


@worker_ready.connect  # type: ignore[untyped-decorator]
def begin(sender: Any, **_kwargs: object) -> None:
    """Free what dead processes of this place left behind, then keep the row's heart beating."""
    name = str(sender.hostname)
    queue = next(iter(sender.app.amqp.queues.consume_from), "")
    device, memory, gpu = describe_device(queue)
    place = here()
    life = Heartbeat(
        name,
        {
            "place": place.machine if place else "",
            "kind": WorkerNode.Kind.WORKER,
            "queue": queue,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "device": device,
            "memory_bytes": memory,
            "gpu": gpu,
            "loads_4bit": loads_4bit(gpu),
            "processes": sender.controller.concurrency,
            "stopped_at": None,
            "started_at": Now(),
        },
    )
    # Once before the first message: a slot that a dead process holds would make this node miss its wake-up.
    life.look()
    # This thread forks the pool's later processes, which must not inherit a connection.
    connection.close()
    threading.Thread(target=life.go_on, daemon=True).start()
    threading.Thread(target=life.guard, daemon=True).start()


@dataclass
class Heartbeat:
    """The node's row: written as soon as the database answers, then kept fresh."""

    node: str
    facts: dict[str, Any]
    signed: float = 0.0  # when the row was last written; 0 while there is none
    other: datetime | None = None  # the last heartbeat of a node of this name at another place
    looked: float = field(default_factory=time.monotonic)

    def go_on(self) -> None:
        """Look after the node until it ends."""
        while not _stop.wait(WATCH_SECONDS):
            with asking:
                self.look()
        connection.close()

    def look(self) -> None:
        """Take jobs from dead processes, and write a heartbeat when it is time."""
        try:
            close_old_connections()
            release_abandoned_jobs()
            self.keep_row()
        except Exception:
            # The database may be away for a while; the next look tells.
            logger.warning("no heartbeat could be written", exc_info=True)
            hang_up()
        self.looked = time.monotonic()

    @property
    def place(self) -> str:
        """Where it runs."""
        return str(self.facts.get("place", ""))

    def keep_row(self) -> None:
        """Write the row, or its next heartbeat when it is time."""
        if not self.signed:
            self.sign_on()
        elif time.monotonic() - self.signed >= HEARTBEAT_SECONDS:
            self.signed = time.monotonic() if sign_life(self.node, self.place) else 0.0

    def sign_on(self) -> None:
        """Write the row: under the node's name, or under its own where that name is alive elsewhere too."""
        name = row_name(self.node)
        if name == self.node:
            beat = (
                WorkerNode.objects.running_elsewhere(name, self.place)
                .values_list("heartbeat_at", flat=True)
                .first()
            )
            if beat and self.other in (None, beat):
                # Perhaps the row of its own life before, in a container that was killed: it beats no more.
                self.other = beat
                return
            name = slots.name_of(self.node) if beat else name
        WorkerNode.objects.register(name, **self.facts, draining=is_told_to_drain())
        self.signed = time.monotonic()

    def guard(self) -> None:
        """End a node that hangs and works on nothing; whoever keeps it alive starts it again."""
        suspected = False
        while not _stop.wait(WATCH_SECONDS):
            is_silent = time.monotonic() - self.looked > SILENT_SECONDS and not is_working()
            if is_silent and suspected:
                logger.error("%s has not come through to the database, so it starts again", self.node)
                os._exit(1)
            # Once is no proof: a machine that slept has silent nodes when it wakes.
            suspected = is_silent


def is_working() -> bool:
    """Whether a process of this node's pool has started an engine that still runs."""
    try:
        return any(process.children() for process in psutil.Process().children())
    except psutil.Error:
        return True


def row_name(node: str) -> str:
    """Under which name this node stands among the workers: its own with the place, if it had to have one."""
    own = slots.name_of(node)
    return own if WorkerNode.objects.filter(name=own).exists() else node


def sign_life(node: str, place: str) -> bool:
    """One heartbeat of this node; its row also says whether it drains. False where the row is gone, or
    another's by now."""
    mine = WorkerNode.objects.filter(place=place)
    return mine.record_heartbeat(row_name(node), draining=is_told_to_drain())


def is_told_to_drain() -> bool:
    """Whether this node, whose main process this is, has been told to shut down."""
    return _flag(os.getpid()).exists()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def drain(**_kwargs: object) -> None:
    """Tell the pool processes: they end their children politely, and take no further job."""
    flag = _flag(os.getpid())
    flag.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flag.touch()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def end(sender: Any, **_kwargs: object) -> None:
    """Leave the row with an end, and no flag behind."""
    _stop.set()
    _flag(os.getpid()).unlink(missing_ok=True)
    place = here()
    mine = WorkerNode.objects.filter(place=place.machine if place else "")
    mine.filter(name=row_name(str(sender.hostname))).update(stopped_at=Now(), draining=False)
