"""Automatic clean-up of files and rows that are no longer needed, each after its retention time.

`sweep()` yields after each entry, so that its caller can run it in small steps. It deletes only below
DATA_DIR, follows no link, and keeps everything that a job may still read.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import IntegrityError, models, transaction

from dashboard.models.adapters.export import Export
from dashboard.models.adapters.publication import ADOPTED_WITHIN, Publication
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.evaluations.blind_comparison import BlindComparison
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import LEASE, State, db_now
from dashboard.models.jobs.outbox import Outbox
from dashboard.models.jobs.webhook import KEPT, WebhookDelivery
from dashboard.models.jobs.worker_node import WorkerNode
from dashboard.models.operations.data_folder import (
    BATCH,
    DELETING,
    age,
    batches,
    entries,
    erase,
    hide,
    is_plain_folder,
    job_number,
    size,
)
from dashboard.models.operations.installation import Installation

logger = logging.getLogger(__name__)
DAY = timedelta(days=1)
ARCHIVE_KEPT = timedelta(days=7)
WORKER_KEPT = timedelta(days=30)
# A clock that is wrong by this much makes files look too old.
CLOCK_SECONDS = 3600.0
# The share of the limit that a trimmed log keeps at each end.
LOG_END = 0.25
LOG_GAP = b"\n--- Graftworks removed the middle part of this log because it was too large. ---\n"


def sweep() -> Iterator[None]:
    """Clean up rows, and files if the data folder belongs to this database and the clock is right."""
    yield from old_rows()
    if not Installation.objects.claim():
        logger.warning("no file is deleted: the data folder belongs to another database")
        return
    if WorkerNode.objects.leading().with_wrong_clock(CLOCK_SECONDS).exists():
        logger.warning("no file is deleted: this machine's clock differs too much from the database's")
        return
    for part in (
        partial_deletions,
        work_folders,
        checkpoints,
        logs,
        calls,
        uploads,
        archives,
        exports,
        versions,
        orphans,
    ):
        try:
            yield from part()
        except OSError as error:
            # One unreadable folder must not stop the clean-up of the others.
            logger.warning("clearing %s: %s", part.__name__, error)


def old_rows() -> Iterator[None]:
    """Delete sent outbox entries, expired sessions, blind answers without a vote, and silent nodes."""
    nodes = WorkerNode.objects.all()
    old: tuple[models.QuerySet[Any], ...] = (
        Outbox.objects.filter(sent_at__lt=db_now(-DAY)),
        Session.objects.filter(expire_date__lt=db_now(-DAY)),
        BlindComparison.objects.abandoned(),
        WebhookDelivery.objects.filter(created_at__lt=db_now(-KEPT)),
        nodes.filter(kind=WorkerNode.Kind.DISPATCHER, heartbeat_at__lt=db_now(-DAY)),
        nodes.filter(heartbeat_at__lt=db_now(-WORKER_KEPT)),
    )
    for rows in old:
        while delete_some(rows):
            yield
        yield


def delete_some(rows: models.QuerySet[Any]) -> int:
    """Delete at most BATCH rows, to keep the transaction short. Return how many."""
    keys = list(rows.order_by().values_list("pk", flat=True)[:BATCH])
    rows.model._default_manager.filter(pk__in=keys).delete()
    return len(keys)


def partial_deletions() -> Iterator[None]:
    """Delete what an earlier round left unfinished."""
    kinds = ("checkpoints", "adapters", "datasets")
    for path in itertools.chain.from_iterable(entries(kind, DELETING) for kind in kinds):
        erase(path)
        yield


def work_folders() -> Iterator[None]:
    """Delete work folders of attempts that have ended."""
    for batch in batches(entries("work", "job-")):
        live = {f"job-{pk}-{attempt}" for pk, attempt in Job.objects.live().values_list("pk", "attempt")}
        for path in batch:
            if path.name not in live and age(path) > LEASE:
                erase(path)
            yield


def checkpoints() -> Iterator[None]:
    """Delete checkpoints of jobs that cannot be resumed or were not resumed in time.

    Damaged checkpoints, which the worker renames, are kept for a day for diagnosis.
    """
    kept = timedelta(days=settings.KEEP_CHECKPOINTS_DAYS)
    overdue = Job.objects.filter(finished_at__lt=db_now(-kept))
    for path in entries("checkpoints", "job-"):
        if age(path) > LEASE:
            delete_checkpoints(path, also=overdue)
        for damaged in entries(f"checkpoints/{path.name}", "damaged-"):
            if age(damaged) > DAY:
                erase(damaged)
        yield


def delete_checkpoints(path: Path, *, also: models.QuerySet[Job]) -> int:
    """Delete checkpoints of a job without a row, of one that keeps none, or of one in `also`."""
    number = job_number(path)
    with transaction.atomic():
        # Locked, because a user may resume the job at the same time.
        job = Job.objects.select_for_update().filter(pk=number).first()
        if job and not job.is_over:
            return 0
        if job and job.keeps_checkpoint and not also.filter(pk=number).exists():
            return 0
        hidden = hide(path)
    freed = size(hidden)
    erase(hidden)
    return freed


def logs() -> Iterator[None]:
    """Delete old logs, and trim large ones even while their job is running."""
    kept = timedelta(days=settings.KEEP_LOGS_DAYS)
    for batch in batches(entries("logs", "job-")):
        numbers = [job_number(path) for path in batch]
        known = Job.objects.filter(pk__in=numbers)
        recent = known.filter(models.Q(finished_at=None) | models.Q(finished_at__gte=db_now(-kept)))
        needed = set(recent.values_list("pk", flat=True))
        for path in batch:
            if age(path) > kept and job_number(path) not in needed:
                path.unlink(missing_ok=True)
            elif path.stat().st_size > settings.LOG_LIMIT_BYTES:
                trim(path, settings.LOG_LIMIT_BYTES)
            yield


def trim(path: Path, limit: int) -> None:
    """Keep a log's head and tail. Edits in place, because the running process has the file open."""
    end = int(limit * LOG_END)
    with path.open("r+b") as log:
        log.seek(-end, os.SEEK_END)
        tail = log.read(end)
        log.seek(end)
        log.write(LOG_GAP + tail)
        log.truncate()


def calls() -> Iterator[None]:
    """Delete the counts of tokens that have not been used for a day; a count is of the last minute."""
    for path in entries("run/calls"):
        if age(path) > DAY:
            erase(path)
        yield


def uploads() -> Iterator[None]:
    """Delete uploads that are imported or were interrupted."""
    # A failed import may be repeated; after success or cancellation the upload is not read again.
    still_needed = DatasetVersion.objects.exclude(job__state__in=[State.SUCCEEDED, State.CANCELLED])
    for batch in batches(path for path in entries("uploads") if age(path) > DAY):
        names = [path.name for path in batch]
        known = set(still_needed.filter(upload__in=names).values_list("upload", flat=True))
        for path in batch:
            if path.name not in known:
                erase(path)
            yield


def archives() -> Iterator[None]:
    """Delete prepared downloads; the next download prepares them again."""
    for path in entries("archives"):
        if age(path) > ARCHIVE_KEPT:
            erase(path)
        yield


def exports() -> Iterator[None]:
    """Delete exports after their time; the same export can be started again."""
    for export in Export.objects.expired().select_related("job")[:BATCH]:
        export.remove()
        yield


def versions() -> Iterator[None]:
    """Delete dataset versions that nothing uses after the time that their upload set."""
    for version in DatasetVersion.objects.expired()[:BATCH]:
        # A run may be started with it meanwhile.
        with contextlib.suppress(models.ProtectedError, IntegrityError):
            version.remove()
        yield


def orphans() -> Iterator[None]:
    """Delete folders that were published without a row and that no later attempt has adopted."""
    for publication in Publication.objects.orphaned()[:BATCH]:
        path = publication.path()
        if is_plain_folder(path) and age(path) < ADOPTED_WITHIN:
            continue
        with transaction.atomic():
            # The row count is the lock: another job that publishes the same content renews the row.
            if not Publication.objects.orphaned().filter(pk=publication.pk).delete()[0]:
                continue
            hidden = hide(path) if is_plain_folder(path) else None
        if hidden:
            logger.warning("deleting %s, which no row refers to", publication)
            erase(hidden)
        yield
