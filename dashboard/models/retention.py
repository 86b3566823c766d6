"""Automatic clean-up, and when: leftovers of dead attempts, old checkpoints and logs, rows nobody reads.

`sweep()` yields after each thing it looked at, so that its caller can do it in small portions. It deletes
below DATA_DIR alone, follows no link, and takes nothing that a job may still read.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import models, transaction

from dashboard.models.data_folder import (
    ASIDE,
    BATCH,
    age,
    batches,
    entries,
    erase,
    is_plain_folder,
    job_number,
    set_aside,
    size,
    unused,
)
from dashboard.models.dataset import DatasetVersion
from dashboard.models.installation import Installation
from dashboard.models.job import Job
from dashboard.models.job_state import LEASE, State, db_now
from dashboard.models.outbox import Outbox
from dashboard.models.publication import ADOPTED_WITHIN, Publication
from dashboard.models.worker_node import WorkerNode

logger = logging.getLogger(__name__)
DAY = timedelta(days=1)
UPLOAD_KEPT = DAY
SENT_KEPT = DAY
DAMAGED_KEPT = DAY
ARCHIVE_KEPT = timedelta(days=7)
DISPATCHER_KEPT = DAY
WORKER_KEPT = timedelta(days=30)
# A clock that is wrong by this much makes files look old.
CLOCK_SECONDS = 3600.0
# What a trimmed log keeps of its limit at each end: room to grow before it is trimmed again.
LOG_END = 0.25
LOG_GAP = b"\n--- A part of this log was left out here, because it had grown too large. ---\n"


def sweep() -> Iterator[None]:
    """One round. Files go only when database and data folder are known to belong together."""
    yield from old_rows()
    if not Installation.objects.claim():
        logger.warning("the data folder belongs to another database, so no file is deleted")
        return
    if WorkerNode.objects.leading().with_wrong_clock(CLOCK_SECONDS).exists():
        logger.warning("this machine's clock is far from the database's, so no file is deleted")
        return
    for part in (aside, work_folders, checkpoints, damaged_checkpoints, logs, uploads, archives, orphans):
        try:
            yield from part()
        except OSError as error:
            # A folder that cannot be read must not keep the others from being cleared.
            logger.warning("clearing %s: %s", part.__name__, error)


def old_rows() -> Iterator[None]:
    """Sent wake-ups, ended sessions, and programs that were not heard from for long."""
    nodes = WorkerNode.objects.all()
    old: tuple[models.QuerySet[Any], ...] = (
        Outbox.objects.filter(sent_at__lt=db_now(-SENT_KEPT)),
        Session.objects.filter(expire_date__lt=db_now(-DAY)),
        nodes.filter(kind=WorkerNode.Kind.DISPATCHER, heartbeat_at__lt=db_now(-DISPATCHER_KEPT)),
        nodes.filter(heartbeat_at__lt=db_now(-WORKER_KEPT)),
    )
    for rows in old:
        while delete_some(rows):
            yield
        yield


def delete_some(rows: models.QuerySet[Any]) -> int:
    """At most BATCH of `rows`, so that nobody waits long for the database; how many."""
    keys = list(rows.order_by().values_list("pk", flat=True)[:BATCH])
    rows.model._default_manager.filter(pk__in=keys).delete()
    return len(keys)


def aside() -> Iterator[None]:
    """What an earlier round could not finish."""
    kinds = ("checkpoints", "adapters", "datasets")
    for path in itertools.chain.from_iterable(entries(kind, ASIDE) for kind in kinds):
        erase(path)
        yield


def work_folders() -> Iterator[None]:
    """Folders of attempts that are over."""
    for batch in batches(entries("work", "job-")):
        live = {f"job-{pk}-{attempt}" for pk, attempt in Job.objects.live().values_list("pk", "attempt")}
        for path in batch:
            if path.name not in live and age(path) > LEASE:
                erase(path)
            yield


def checkpoints() -> Iterator[None]:
    """Checkpoints of jobs that will not go on, or that nobody has resumed in time."""
    kept = timedelta(days=settings.KEEP_CHECKPOINTS_DAYS)
    overdue = Job.objects.filter(finished_at__lt=db_now(-kept))
    for path in entries("checkpoints", "job-"):
        if age(path) > LEASE:
            forget_checkpoint(path, also=overdue)
        yield


def forget_checkpoint(path: Path, *, also: models.QuerySet[Job]) -> int:
    """Delete checkpoints of a job that keeps none, is unknown, or is over and in `also`; the bytes freed."""
    number = job_number(path)
    with transaction.atomic():
        # Locked: somebody may resume the job at this very moment.
        job = Job.objects.select_for_update().filter(pk=number).first()
        if job and not job.is_over:
            return 0
        if job and job.keeps_checkpoint and not also.filter(pk=number).exists():
            return 0
        hidden = set_aside(path)
    freed = size(hidden)
    erase(hidden)
    return freed


def damaged_checkpoints() -> Iterator[None]:
    """Kept for a day for whoever wants to know what happened to them."""
    for folder in entries("checkpoints", "job-"):
        for path in entries(f"checkpoints/{folder.name}", "damaged-"):
            if age(path) > DAMAGED_KEPT:
                erase(path)
        yield


def logs() -> Iterator[None]:
    """Old logs go; of one that is too large the middle goes, also while its job is at work."""
    kept = timedelta(days=settings.KEEP_LOGS_DAYS)
    for batch in batches(entries("logs", "job-")):
        numbers = [job_number(path) for path in batch]
        known = Job.objects.filter(pk__in=numbers)
        old = set(known.filter(finished_at__lt=db_now(-kept)).values_list("pk", flat=True))
        unknown = set(numbers) - set(known.values_list("pk", flat=True))
        for path in batch:
            number = job_number(path)
            if age(path) > kept and (number in old or number in unknown):
                path.unlink(missing_ok=True)
            elif path.stat().st_size > settings.LOG_LIMIT_BYTES:
                trim(path, settings.LOG_LIMIT_BYTES)
            yield


def trim(path: Path, limit: int) -> None:
    """Keep a log's head and tail. In place, because the process that writes it appends to this very file."""
    end = int(limit * LOG_END)
    with path.open("r+b") as log:
        log.seek(-end, os.SEEK_END)
        tail = log.read(end)
        log.seek(end)
        log.write(LOG_GAP + tail)
        log.truncate()


def uploads() -> Iterator[None]:
    """Files that nothing will read: spooled bodies of broken uploads, and what has been imported."""
    # A failed import may be asked for again; after a success or a stop nobody reads the upload.
    read_again = DatasetVersion.objects.exclude(job__state__in=[State.SUCCEEDED, State.CANCELLED])
    for batch in batches(path for path in entries("uploads") if age(path) > UPLOAD_KEPT):
        names = [path.name for path in batch]
        known = set(read_again.filter(upload__in=names).values_list("upload", flat=True))
        for path in batch:
            if path.name not in known:
                erase(path)
            yield


def archives() -> Iterator[None]:
    """Zips for downloads: made again when somebody asks."""
    for path in entries("archives"):
        if unused(path) > ARCHIVE_KEPT:
            erase(path)
        yield


def orphans() -> Iterator[None]:
    """Folders that were published without a row to follow, and that no later attempt has adopted."""
    for publication in Publication.objects.orphaned()[:BATCH]:
        path = publication.path()
        if is_plain_folder(path) and age(path) < ADOPTED_WITHIN:
            continue
        with transaction.atomic():
            # The row count is the lock: whoever publishes the same content has made the row young again.
            if not Publication.objects.orphaned().filter(pk=publication.pk).delete()[0]:
                continue
            hidden = set_aside(path) if is_plain_folder(path) else None
        if hidden:
            logger.warning("%s belonged to nothing and is deleted", publication)
            erase(hidden)
        yield
