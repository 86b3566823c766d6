"""A run's curves: a live event stream, JSON for polling, and CSV.

The cursor of the points that a page has is also the event id, so a reloaded page or a restarted server
continues where the last one ended. No broker is involved: `live_run` polls the database.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from asgiref.sync import sync_to_async
from django.http import HttpResponse, JsonResponse
from django.views.decorators.http import require_GET

from dashboard.charts.curves import Cursor
from dashboard.downloads import csv_file
from dashboard.gate import Request
from dashboard.models import TrainingRun
from dashboard.streams import StreamResponse, release_connection
from dashboard.views.readers import Reader
from dashboard.views.training.live_run import follow, latest_updates

PING_SECONDS = 15.0
# Between the parts of JSON.
COMPACT = (",", ":")


@require_GET
async def stream(request: Request, pk: int) -> StreamResponse:
    """Stream server-sent events until the run and its evaluations are over."""
    reader = await sync_to_async(reader_of)(request, pk)
    cursor = Cursor.parse(request.headers.get("Last-Event-ID") or request.GET.get("since", ""))
    await sync_to_async(release_connection)()
    return StreamResponse(events(reader, pk, cursor), "text/event-stream")


def reader_of(request: Request, pk: int) -> Reader:
    """Return the reader of a stream; 404 if they may not see the run."""
    run = TrainingRun.objects.fetch(request.user, pk)
    return Reader.of(request.user, request.session, run.project_id)


@require_GET
def metrics(request: Request, pk: int) -> JsonResponse:
    """Return points after ?since=, for pages without a working stream."""
    TrainingRun.objects.fetch(request.user, pk)
    cursor = Cursor.parse(request.GET.get("since", ""))
    update = latest_updates(pk, [cursor]).get(cursor)
    response = JsonResponse(update.to_dict() if update else {}, json_dumps_params={"separators": COMPACT})
    # Curves of an ended run stay; the browser asks whether they are still the same.
    response["Cache-Control"] = "private, no-cache" if update and update.over else "no-store"
    return response


@require_GET
def metrics_csv(request: Request, pk: int) -> HttpResponse:
    """Download every curve as CSV: one row per step, one column per curve."""
    run = TrainingRun.objects.fetch(request.user, pk)
    curves = {series.name: dict(series.points()) for series in run.metric_series.all()}
    steps = sorted({step for points in curves.values() for step in points})
    rows = ([step, *(points.get(step) for points in curves.values())] for step in steps)
    return csv_file(f"run-{run.pk}-metrics.csv", [["step", *curves], *rows])


async def events(reader: Reader, pk: int, cursor: Cursor) -> AsyncGenerator[str, None]:
    """Yield the stream's text until the run is over or the reader may no longer see it."""
    sign, sent_at = "", time.monotonic()
    yield "retry: 2000\n\n"
    async with aclosing(follow(pk, reader, cursor)) as updates:
        async for update in updates:
            if isinstance(update, Exception):
                # A browser that reconnected now would be refused and give up. The next poll sends all again.
                yield event("away", {}, cursor)
                sign = ""
                continue
            progress = {"state": update.state, "over": update.over}
            messages = []
            if any(update.points["curves"].values()) or update.cursor != cursor:
                messages.append(event("points", update.points, update.cursor))
            cursor = update.cursor
            # The place in the queue changes without a new sign.
            if update.sign != sign or (not messages and time.monotonic() - sent_at >= PING_SECONDS):
                sign = update.sign
                messages.append(event("progress", progress, cursor))
            if update.over:
                messages.append(event("end", {}, cursor))
            if messages:
                sent_at = time.monotonic()
                yield "".join(messages)
            if update.over:
                return


def event(name: str, data: dict[str, Any], cursor: Cursor) -> str:
    """Format one server-sent event; JSON has no line breaks, so one data line is enough."""
    return f"event: {name}\nid: {cursor}\ndata: {json.dumps(data, separators=COMPACT)}\n\n"
