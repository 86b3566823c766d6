"""A run's curves, live: an event stream, the JSON of the same for polling, and CSV.

The stream asks the database once a second for what came after its cursor, which is also the event id: a page
that reloads, a second tab and a restarted server all go on from the same truth. No broker is involved.
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

from dashboard.charts import Cursor, news
from dashboard.downloads import csv_file
from dashboard.gate import Request
from dashboard.models import JobEvent, TrainingRun, User
from dashboard.outage import AWAY

LOOK_SECONDS = 1.0
PING_SECONDS = 15.0
AWAY_SECONDS = 2.0


@dataclass(frozen=True)
class Look:
    """What there is to tell: new points, a sign that changes with anything else, and whether it is over."""

    points: dict[str, Any]
    cursor: Cursor
    sign: str
    state: str
    over: bool

    def facts(self) -> dict[str, Any]:
        """The same for a page that polls."""
        return {**self.points, "sign": self.sign, "state": self.state, "over": self.over}


@require_GET
async def stream(request: Request, pk: int) -> StreamingHttpResponse:
    """Server-sent events until the run and its evaluation are over."""
    user = request.user
    await sync_to_async(TrainingRun.objects.fetch)(user, pk)
    cursor = Cursor.parse(request.headers.get("Last-Event-ID") or request.GET.get("since", ""))
    response = StreamingHttpResponse(events(user, pk, cursor), content_type="text/event-stream")
    response["Cache-Control"] = "no-store"
    # nginx would hold the events back.
    response["X-Accel-Buffering"] = "no"
    return response


@require_GET
def metrics(request: Request, pk: int) -> JsonResponse:
    """Points after ?since=, for pages whose stream does not hold."""
    TrainingRun.objects.fetch(request.user, pk)
    found = look(request.user, pk, Cursor.parse(request.GET.get("since", "")))
    response = JsonResponse(found.facts() if found else {})
    response["Cache-Control"] = "no-store"
    return response


@require_GET
def metrics_csv(request: Request, pk: int) -> HttpResponse:
    """Every point of every curve: one row per step, one column per curve."""
    run = TrainingRun.objects.fetch(request.user, pk)
    curves = {series.name: dict(series.points()) for series in run.metric_series.all()}
    steps = sorted({step for points in curves.values() for step in points})
    rows = ([step, *(points.get(step) for points in curves.values())] for step in steps)
    return csv_file(f"run-{run.pk}-metrics.csv", [["step", *curves], *rows])


async def events(user: User, pk: int, cursor: Cursor) -> AsyncIterator[str]:
    """The stream's text. Ends when nothing more can happen, or when the reader may no longer see the run."""
    # Thread-sensitive, each stream would keep a database connection of its own.
    looks = sync_to_async(look_alone, thread_sensitive=False)
    sign, quiet = "", 0.0
    yield "retry: 2000\n\n"
    while True:
        try:
            found = await looks(user, pk, cursor)
        except AWAY:
            # A reader who comes back would be refused, and then not come again. The next look tells all anew.
            yield event("away", {}, cursor)
            sign = ""
            await asyncio.sleep(AWAY_SECONDS)
            continue
        if found is None:
            return
        told = []
        if any(found.points["curves"].values()) or found.cursor != cursor:
            told.append(event("points", found.points, found.cursor))
        cursor = found.cursor
        if found.sign != sign:
            sign = found.sign
            told.append(event("progress", {"state": found.state, "over": found.over}, cursor))
        if found.over:
            told.append(event("end", {}, cursor))
        quiet = 0.0 if told else quiet + LOOK_SECONDS
        if quiet >= PING_SECONDS:
            # A place in the queue, or who takes jobs of it, changes without a sign.
            told, quiet = [event("progress", {"state": found.state, "over": found.over}, cursor)], 0.0
        if told:
            yield "".join(told)
        if found.over:
            return
        await asyncio.sleep(LOOK_SECONDS)


def event(name: str, data: dict[str, Any], cursor: Cursor) -> str:
    """One event; JSON has no line breaks, so one data line is enough."""
    return f"event: {name}\nid: {cursor}\ndata: {json.dumps(data)}\n\n"


def look_alone(user: User, pk: int, cursor: Cursor) -> Look | None:
    """`look` in a thread of a pool: leaves no connection behind."""
    close_old_connections()
    try:
        return look(user, pk, cursor)
    finally:
        close_old_connections()


def look(user: User, pk: int, cursor: Cursor) -> Look | None:
    """What came after `cursor`; None for whoever may not (or no longer) see the run."""
    run = TrainingRun.objects.select_related("job", "dataset_version").with_scores().visible_to(user)
    found = run.filter(pk=pk).first()
    if found is None:
        return None
    points, after = news(found, cursor)
    jobs = [job for job in (found.job, *(one.job for one in found.evaluations.all())) if job]
    told = JobEvent.objects.filter(job__in=jobs).aggregate(last=Max("pk"))["last"]
    parts = [f"{job.state}.{job.phase}.{job.step}.{job.eta_seconds}" for job in jobs]
    sign = "|".join([found.state, str(told), *parts])
    return Look(points, after, sign, found.state, found.is_settled)
