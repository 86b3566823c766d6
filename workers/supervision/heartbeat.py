"""The heartbeat of a Celery node, and the flag that tells its pool processes to drain.

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
from celery.signals import (
    worker_init,
    worker_process_init,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from django.conf import settings
from django.db import close_old_connections, connection
from django.db.models.functions import Now

from dashboard.models import Job, WorkerNode
from dashboard.models.jobs.worker_node import HEARTBEAT_SECONDS
from workers.supervision import device_lock
from workers.supervision.database_outage import close_connection
from workers.supervision.forked_engine import FORK_SERVER
from workers.supervision.orphaned_jobs import release_orphaned_jobs
from workers.supervision.process_identity import here

logger = logging.getLogger(__name__)
_stop = threading.Event()
_node: set[int] = set()  # the pid of the node's main process, for the processes that it forks
# Interval at which jobs of killed pool processes are released.
WATCH_SECONDS = 4.0
# A heartbeat that takes longer hangs in a query.
SILENT_SECONDS = 60.0
CPU_FACTS = Path("/proc/cpuinfo")  # of Linux
# Flag of a CPU that multiplies faster in bfloat16 than in fp32, the fastest first -> what users read.
BF16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
# Longest wait of a fork for the end of a query, which may hang.
FORK_SECONDS = 30.0


class QueryLock:
    """Held during a query of this thread, so that the pool's processes are forked between two queries.

    SQLite keeps its file locks in memory. A process forked in the middle of a query inherits the entry
    without the lock, and finds its database locked for ever.
    """

    def __init__(self) -> None:
        self.lock, self.thread = threading.Lock(), threading.local()
        os.register_at_fork(before=self._acquire, after_in_parent=self._release, after_in_child=self._release)

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_error: object) -> None:
        # A forked process would share an open connection.
        if connection.vendor == "sqlite":
            connection.close()
        self.lock.release()

    def _acquire(self) -> None:
        self.thread.is_locked = self.lock.acquire(timeout=FORK_SECONDS)

    def _release(self) -> None:
        if self.thread.is_locked:
            self.lock.release()


query_lock = QueryLock()


def _drain_flag(main_pid: int) -> Path:
    # Containers share the folder, and the node may be process 1 in each of them.
    return Path(settings.DATA_DIR) / "run" / device_lock.slot_name(f"draining-{main_pid}").replace("/", "-")


def is_draining() -> bool:
    """Return whether the node of this pool process is shutting down."""
    return _drain_flag(os.getppid()).exists()


def describe_device(queue: str) -> dict[str, Any]:
    """Return the device's name, its memory in bytes, the GPU's number, and whether it loads 4-bit models."""
    cores = len(os.sched_getaffinity(0))
    # Trainings at once share the memory.
    memory = psutil.virtual_memory().total // (settings.CPU_TRAININGS if queue == Job.Queue.GPU else 1)
    cpu = (f"CPU, {cores} cores{_bf16_unit()} ({platform.machine()})", memory, None)
    device, memory, gpu = (_first_gpu() if queue == Job.Queue.GPU else None) or cpu
    return {"device": device, "memory_bytes": memory, "gpu": gpu, "loads_4bit": loads_4bit(gpu)}


def _bf16_unit() -> str:
    """Return " with AMX", for example, if the CPU has a unit for bfloat16, else ""; Linux knows."""
    try:
        flags = CPU_FACTS.read_text().split()
    except OSError:
        return ""
    return next((f" with {name}" for flag, name in BF16_UNITS.items() if flag in flags), "")


def loads_4bit(gpu: int | None) -> bool:
    """Return whether this node can load a base model in 4 bits: it has CUDA and bitsandbytes."""
    return gpu is not None and importlib.util.find_spec("bitsandbytes") is not None


def _first_gpu() -> tuple[str, int, int] | None:
    """Return the name, memory and number of the GPU that this process may use, without initialising CUDA."""
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
def delete_stale_flag(**_kwargs: object) -> None:
    """Delete the flag of a node that was killed while draining: in a container the next one has its pid."""
    _node.add(os.getpid())
    _drain_flag(os.getpid()).unlink(missing_ok=True)


@worker_process_init.connect  # type: ignore[untyped-decorator]
def end_without_node(**_kwargs: object) -> None:
    """End a pool process whose node was killed before Celery asked the kernel for a signal at its end."""
    if _node and os.getppid() not in _node:
        os._exit(1)


@worker_ready.connect  # type: ignore[untyped-decorator]
def start(sender: Any, **_kwargs: object) -> None:
    """Start the heartbeat."""
    name = str(sender.hostname)
    queue = next(iter(sender.app.amqp.queues.consume_from), "")
    place = here()
    heartbeat = Heartbeat(
        name,
        {
            "place": place.machine if place else "",
            "kind": WorkerNode.Kind.WORKER,
            "queue": queue,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **describe_device(queue),
            "processes": sender.controller.concurrency,
            "stopped_at": None,
            "started_at": Now(),
        },
    )
    # Before the first message: a job of a dead process would block the slot that the message is for.
    heartbeat.beat()
    # This thread forks the pool's processes, which must not inherit a connection.
    connection.close()
    threading.Thread(target=heartbeat.run, daemon=True).start()
    threading.Thread(target=heartbeat.guard, daemon=True).start()


@dataclass
class Heartbeat:
    """Writes the node's row as soon as the database answers, then its heartbeats."""

    node: str
    facts: dict[str, Any]
    written: float = 0.0  # monotonic, when the row was last written; 0 while there is none
    other_heartbeat: datetime | None = None  # the last heartbeat of a node of this name at another place
    last_beat: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Beat until the node ends."""
        while not _stop.wait(WATCH_SECONDS):
            with query_lock:
                self.beat()
        connection.close()

    def beat(self) -> None:
        """Release the jobs of dead processes, and write the row when it is due."""
        try:
            close_old_connections()
            release_orphaned_jobs()
            self.keep_row()
        except Exception:
            logger.warning("no heartbeat could be written", exc_info=True)
            close_connection()
        self.last_beat = time.monotonic()

    @property
    def place(self) -> str:
        """Return the machine and boot that its pid belongs to."""
        return str(self.facts.get("place", ""))

    def keep_row(self) -> None:
        """Write the row, or its next heartbeat when it is due."""
        if not self.written:
            self.register()
        elif time.monotonic() - self.written >= HEARTBEAT_SECONDS:
            self.written = time.monotonic() if record_heartbeat(self.node, self.place) else 0.0

    def register(self) -> None:
        """Write the row under the node's name, or with its place added if that name is alive elsewhere."""
        name = row_name(self.node)
        if name == self.node:
            beat = (
                WorkerNode.objects.running_elsewhere(name, self.place)
                .values_list("heartbeat_at", flat=True)
                .first()
            )
            if beat and self.other_heartbeat in (None, beat):
                # It may be this node's own row of before a restart, which gets no further heartbeat.
                self.other_heartbeat = beat
                return
            name = device_lock.slot_name(self.node) if beat else name
        WorkerNode.objects.register(name, **self.facts, draining=is_shutting_down())
        self.written = time.monotonic()

    def guard(self) -> None:
        """Exit if the node hangs without an engine; its process manager starts it again."""
        suspected = False
        while not _stop.wait(WATCH_SECONDS):
            is_silent = time.monotonic() - self.last_beat > SILENT_SECONDS and not has_engine()
            if is_silent and suspected:
                logger.error("%s hangs in a database query, so it exits to be started again", self.node)
                os._exit(1)
            # Checked twice: after a suspend of the machine every node seems to hang once.
            suspected = is_silent


def has_engine() -> bool:
    """Return whether a process of this node's pool runs an engine."""
    try:
        children = [child for process in psutil.Process().children() for child in process.children()]
        return any(FORK_SERVER not in child.cmdline() for child in children)
    except psutil.Error:
        return True


def row_name(node: str) -> str:
    """Return the name of this node's row, which has its place added if that was registered."""
    own = device_lock.slot_name(node)
    return own if WorkerNode.objects.filter(name=own).exists() else node


def record_heartbeat(node: str, place: str) -> bool:
    """Write one heartbeat and the drain flag; return False if the row is gone or another node's."""
    mine = WorkerNode.objects.filter(place=place)
    return mine.record_heartbeat(row_name(node), draining=is_shutting_down())


def is_shutting_down() -> bool:
    """Return whether this node is shutting down; called in its main process."""
    return _drain_flag(os.getpid()).exists()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def set_drain_flag(**_kwargs: object) -> None:
    """Make the pool processes stop their engines with a checkpoint and claim no further job."""
    flag = _drain_flag(os.getpid())
    flag.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flag.touch()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def stop(sender: Any, **_kwargs: object) -> None:
    """Mark the row as stopped, and delete the flag."""
    _stop.set()
    _drain_flag(os.getpid()).unlink(missing_ok=True)
    place = here()
    mine = WorkerNode.objects.filter(place=place.machine if place else "")
    mine.filter(name=row_name(str(sender.hostname))).update(stopped_at=Now(), draining=False)
