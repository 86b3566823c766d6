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
from django.contrib.auth import HASH_SESSION_KEY
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.models import Session
from django.db import close_old_connections
from django.db.models import Max
from django.utils import timezone

from dashboard.charts.curves import Cursor, points_after
from dashboard.models import JobEvent, Membership, TrainingRun, User
from dashboard.outage import DATABASE_ERRORS

POLL_SECONDS = 1.0
OUTAGE_SECONDS = 2.0
# Sign-out, removal and a change of role end a stream within this time and one poll.
ACCESS_SECONDS = 3.0


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


@dataclass(frozen=True)
class Reader:
    """The session and the role with which a stream was opened."""

    user_id: int
    role: str
    session_key: str
    session_hash: str

    @classmethod
    def of(cls, user: User, session: SessionBase, project_id: int) -> Reader:
        role = Membership.objects.values_list("role", flat=True).get(user=user, project=project_id)
        return cls(user.pk, role, session.session_key or "", session.get(HASH_SESSION_KEY, ""))


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
            watch.task.cancel()
            _watches.pop(key, None)


def looked_up_in_thread(
    pk: int, cursors: Iterable[Cursor], readers: Iterable[Reader]
) -> tuple[dict[Cursor, Update], set[Reader]]:
    """Return the update after each cursor and the refused readers, without leaving a connection open."""
    close_old_connections()
    try:
        return latest_updates(pk, cursors), refused_readers(pk, readers)
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


def refused_readers(pk: int, readers: Iterable[Reader]) -> set[Reader]:
    """Return those who signed out, changed their password, or lost or changed their role in the project."""
    asked = list(readers)
    if not asked:
        return set()
    users = {reader.user_id for reader in asked}
    members = Membership.objects.filter(project__training_runs=pk, user__in=users, user__is_active=True)
    roles = dict(members.values_list("user", "role"))
    keys = [reader.session_key for reader in asked]
    open_keys = set(
        Session.objects.filter(session_key__in=keys, expire_date__gt=timezone.now()).values_list(
            "session_key", flat=True
        )
    )
    hashes = {user.pk: user.get_session_auth_hash() for user in User.objects.filter(pk__in=users)}
    return {
        reader
        for reader in asked
        if roles.get(reader.user_id) != reader.role
        or reader.session_key not in open_keys
        or hashes.get(reader.user_id) != reader.session_hash
    }
