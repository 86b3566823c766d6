"""Live updates of a run: read once per process and second, and sent to all who watch it.

Every few seconds it checks that each reader is still signed in, with the role that the page was made for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from asgiref.sync import sync_to_async
from django.db import close_old_connections
from django.db.models import Max

from dashboard.charts.curves import Cursor, points_after
from dashboard.models import JobEvent, TrainingRun
from dashboard.outage import DATABASE_ERRORS
from dashboard.streams import ACCESS_SECONDS
from dashboard.views.readers import Reader, refused_readers

POLL_SECONDS = 1.0
OUTAGE_SECONDS = 2.0


@dataclass(frozen=True)
class Update:
    """New points, the state, and a `sign` that changes with everything else that the page shows."""

    points: dict[str, Any]
    cursor: Cursor
    sign: str
    state: str
    over: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the update as JSON for a page that polls."""
        return {**self.points, "sign": self.sign, "state": self.state, "over": self.over}


@dataclass(eq=False)
class Viewer:
    """One open stream: what its page has, and the updates that wait for it. None ends it."""

    reader: Reader
    cursor: Cursor
    updates: asyncio.Queue[Update | Exception | None] = field(default_factory=asyncio.Queue)


class Watch:
    """The viewers of one run in this process, and the task that reads for them."""

    def __init__(self, pk: int) -> None:
        self.pk = pk
        self.viewers: list[Viewer] = []
        self.joined = asyncio.Event()
        self.task = asyncio.create_task(self.work())

    async def work(self) -> None:
        """Read until all have gone. After an unexpected error the streams end, and browsers open new ones."""
        try:
            await self.read()
        finally:
            forget(self)
            for viewer in self.viewers:
                viewer.updates.put_nowait(None)

    async def read(self) -> None:
        # Calls that are not thread-sensitive share the few threads of the loop's pool.
        look = sync_to_async(looked_up_in_thread, thread_sensitive=False)
        checked_at = -ACCESS_SECONDS
        while True:
            self.joined.clear()
            viewers = list(self.viewers)
            now = asyncio.get_running_loop().time()
            is_check = now - checked_at >= ACCESS_SECONDS
            readers = {viewer.reader for viewer in viewers} if is_check else set()
            try:
                updates, refused = await look(self.pk, {viewer.cursor for viewer in viewers}, readers)
            except DATABASE_ERRORS as error:
                for viewer in viewers:
                    viewer.updates.put_nowait(error)
                await asyncio.sleep(OUTAGE_SECONDS)
                continue
            checked_at = now if is_check else checked_at
            for viewer in viewers:
                update = None if viewer.reader in refused else updates.get(viewer.cursor)
                viewer.cursor = update.cursor if update else viewer.cursor
                viewer.updates.put_nowait(update)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.joined.wait(), POLL_SECONDS)


# By event loop and run; a process has one loop, tests have several.
_watches: dict[tuple[int, int], Watch] = {}


def forget(watch: Watch) -> None:
    """Let the next viewer begin another watch."""
    for key, known in list(_watches.items()):
        if known is watch:
            del _watches[key]


async def follow(pk: int, reader: Reader, cursor: Cursor) -> AsyncGenerator[Update | Exception]:
    """Yield the updates after `cursor`, or the error while the database is away; end with the access."""
    key = id(asyncio.get_running_loop()), pk
    watch = _watches.get(key) or _watches.setdefault(key, Watch(pk))
    viewer = Viewer(reader, cursor)
    watch.viewers.append(viewer)
    watch.joined.set()
    try:
        while (update := await viewer.updates.get()) is not None:
            yield update
    finally:
        watch.viewers.remove(viewer)
        if not watch.viewers:
            forget(watch)
            watch.task.cancel()


def looked_up_in_thread(
    pk: int, cursors: Iterable[Cursor], readers: Iterable[Reader]
) -> tuple[dict[Cursor, Update], set[Reader]]:
    """Return the update after each cursor and the refused readers, without leaving a connection open."""
    close_old_connections()
    try:
        return latest_updates(pk, cursors), refused_readers(readers)
    finally:
        close_old_connections()


def latest_updates(pk: int, cursors: Iterable[Cursor]) -> dict[Cursor, Update]:
    """Return the update after each cursor; none if the run was deleted."""
    runs = TrainingRun.objects.select_related("job", "dataset_version").with_scores()
    run = runs.filter(pk=pk).first()
    if run is None:
        return {}
    jobs = [job for job in (run.job, *(evaluation.job for evaluation in run.evaluations.all())) if job]
    last_event = JobEvent.objects.filter(job__in=jobs).aggregate(last=Max("pk"))["last"]
    parts = [f"{job.state}.{job.phase}.{job.step}.{job.eta_seconds}" for job in jobs]
    sign = "|".join([run.state, str(last_event), *parts])
    updates = {}
    for cursor in cursors:
        points, after = points_after(run, cursor)
        updates[cursor] = Update(points, after, sign, run.state, run.is_settled)
    return updates
