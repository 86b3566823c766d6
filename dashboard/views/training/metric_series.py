"""A run's curves: a live event stream, JSON for polling, and CSV.

The stream polls the database once a second for points after its cursor, which is also the event id, so a
reloaded page or a restarted server continues where the last one ended. No broker is involved.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from asgiref.sync import sync_to_async
from django.db import close_old_connections
from django.db.models import Max
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.http import require_GET

from dashboard.charts.curves import Cursor, points_after
from dashboard.downloads import csv_file
from dashboard.gate import Request
from dashboard.models import JobEvent, TrainingRun, User
from dashboard.outage import DATABASE_ERRORS
from dashboard.streams import release_connection, stream_of

POLL_SECONDS = 1.0
PING_SECONDS = 15.0
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


@require_GET
async def stream(request: Request, pk: int) -> StreamingHttpResponse:
    """Stream server-sent events until the run and its evaluations are over."""
    user = request.user
    await sync_to_async(TrainingRun.objects.fetch)(user, pk)
    cursor = Cursor.parse(request.headers.get("Last-Event-ID") or request.GET.get("since", ""))
    await sync_to_async(release_connection)()
    return stream_of(events(user, pk, cursor), "text/event-stream")


@require_GET
def metrics(request: Request, pk: int) -> JsonResponse:
    """Return points after ?since=, for pages without a working stream."""
    TrainingRun.objects.fetch(request.user, pk)
    update = latest_update(request.user, pk, Cursor.parse(request.GET.get("since", "")))
    response = JsonResponse(update.to_dict() if update else {})
    response["Cache-Control"] = "no-store"
    return response


@require_GET
def metrics_csv(request: Request, pk: int) -> HttpResponse:
    """Download every curve as CSV: one row per step, one column per curve."""
    run = TrainingRun.objects.fetch(request.user, pk)
    curves = {series.name: dict(series.points()) for series in run.metric_series.all()}
    steps = sorted({step for points in curves.values() for step in points})
    rows = ([step, *(points.get(step) for points in curves.values())] for step in steps)
    return csv_file(f"run-{run.pk}-metrics.csv", [["step", *curves], *rows])


async def events(user: User, pk: int, cursor: Cursor) -> AsyncIterator[str]:
    """Yield the stream's text until the run is over or the user may no longer see it."""
    # A thread-sensitive call would hold one database connection per stream.
    poll = sync_to_async(latest_update_in_thread, thread_sensitive=False)
    sign, idle_seconds = "", 0.0
    yield "retry: 2000\n\n"
    while True:
        try:
            update = await poll(user, pk, cursor)
        except DATABASE_ERRORS:
            # A browser that reconnected now would be refused and give up. The next poll sends all again.
            yield event("away", {}, cursor)
            sign = ""
            await asyncio.sleep(OUTAGE_SECONDS)
            continue
        if update is None:
            return
        progress = {"state": update.state, "over": update.over}
        messages = []
        if any(update.points["curves"].values()) or update.cursor != cursor:
            messages.append(event("points", update.points, update.cursor))
        cursor = update.cursor
        idle_seconds += POLL_SECONDS
        # The place in the queue changes without a new sign.
        if update.sign != sign or (not messages and idle_seconds >= PING_SECONDS):
            sign = update.sign
            messages.append(event("progress", progress, cursor))
        if update.over:
            messages.append(event("end", {}, cursor))
        if messages:
            idle_seconds = 0.0
            yield "".join(messages)
        if update.over:
            return
        await asyncio.sleep(POLL_SECONDS)


def event(name: str, data: dict[str, Any], cursor: Cursor) -> str:
    """Format one server-sent event; JSON has no line breaks, so one data line is enough."""
    return f"event: {name}\nid: {cursor}\ndata: {json.dumps(data)}\n\n"


def latest_update_in_thread(user: User, pk: int, cursor: Cursor) -> Update | None:
    """Call `latest_update` in a pool's thread, without leaving a connection open."""
    close_old_connections()
    try:
        return latest_update(user, pk, cursor)
    finally:
        close_old_connections()


def latest_update(user: User, pk: int, cursor: Cursor) -> Update | None:
    """Return the update after `cursor`; None if the user may not see the run."""
    runs = TrainingRun.objects.select_related("job", "dataset_version").with_scores().visible_to(user)
    run = runs.filter(pk=pk).first()
    if run is None:
        return None
    points, after = points_after(run, cursor)
    jobs = [job for job in (run.job, *(evaluation.job for evaluation in run.evaluations.all())) if job]
    last_event = JobEvent.objects.filter(job__in=jobs).aggregate(last=Max("pk"))["last"]
    parts = [f"{job.state}.{job.phase}.{job.step}.{job.eta_seconds}" for job in jobs]
    sign = "|".join([run.state, str(last_event), *parts])
    return Update(points, after, sign, run.state, run.is_settled)
