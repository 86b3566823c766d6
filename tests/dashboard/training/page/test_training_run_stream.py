"""The event stream of a run: points, progress and end; it can be resumed."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import pytest
from django.http import StreamingHttpResponse
from django.test import AsyncClient
from django.urls import reverse

from dashboard.charts.curves import Cursor
from dashboard.models import Evaluation, MetricSeries, Project, State, TrainingRun, User
from dashboard.views.training import metric_series
from tests.conftest import finish
from tests.dashboard.conftest import publish

pytestmark = pytest.mark.django_db(transaction=True)


def parse(text: str) -> list[tuple[str, str, Any]]:
    """Return (event, id, data) of each event in a part of the stream."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            found.append((fields["event"], fields["id"], json.loads(fields["data"])))
    return found


async def read(
    user: User, run: TrainingRun, pieces: int = 50, headers: dict[str, str] | None = None
) -> tuple[StreamingHttpResponse, str]:
    """Return the response and the text of its first parts, or of all if it ends before."""
    client = AsyncClient()
    await client.aforce_login(user)
    response: Any = await client.get(reverse("training-run-stream", args=[run.pk]), headers=headers or {})
    assert isinstance(response, StreamingHttpResponse)
    content: Any = aiter(response.streaming_content)  # type: ignore[arg-type]
    text = ""
    for _piece in range(pieces):
        try:
            text += (await asyncio.wait_for(anext(content), 20)).decode()
        except StopAsyncIteration:
            break
    await content.aclose()
    return response, text


def end(run: TrainingRun, state: State = State.FAILED) -> None:
    assert run.job is not None
    finish(run.job, state)


def test_it_sends_points_then_progress_then_the_end(vera: User, run: TrainingRun) -> None:
    MetricSeries.objects.append(run, "train/loss", [(1, 3.0), (2, 2.5)])
    end(run)
    response, text = asyncio.run(read(vera, run))
    found = parse(text)
    assert [name for name, _id, _data in found] == ["points", "progress", "end"]
    assert found[0][2]["curves"]["train/loss"] == [[1, 3.0], [2, 2.5]]
    assert found[1][2] == {"state": "failed", "over": True}
    assert (response["X-Accel-Buffering"], response["Cache-Control"]) == ("no", "no-store")
    assert response["Content-Type"] == "text/event-stream"


def test_it_continues_after_the_last_event_id(vera: User, run: TrainingRun) -> None:
    MetricSeries.objects.append(run, "train/loss", [(1, 3.0), (2, 2.5), (3, 2.0)])
    end(run)
    _response, text = asyncio.run(read(vera, run, headers={"Last-Event-ID": str(Cursor(1, (2, -1)))}))
    (_name, event_id, data), *_rest = parse(text)
    assert (data["replace"], data["curves"]["train/loss"]) == (False, [[3, 2.0]])
    assert event_id == "1.3.-1"


def test_it_sends_new_points_while_open(
    vera: User, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_series, "POLL_SECONDS", 0.05)

    async def follow() -> str:
        append = partial(MetricSeries.objects.append, run, "train/loss", [(1, 3.0)])
        steps = iter((append, partial(end, run)))
        text = ""
        async for piece in metric_series.events(vera, run.pk, Cursor()):
            text += piece
            if "event: " in piece and (step := next(steps, None)):
                await asyncio.to_thread(step)
        return text

    names = [name for name, _id, _data in parse(asyncio.run(follow()))]
    assert names[0] == "progress"
    assert "points" in names
    assert names[-1] == "end"


def test_an_idle_stream_sends_pings(vera: User, run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_series, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(metric_series, "PING_SECONDS", 0.06)
    _response, text = asyncio.run(read(vera, run, pieces=4))
    found = parse(text)
    assert [name for name, _id, _data in found] == ["progress"] * 3, "each makes the page look for itself"
    assert {event_id for _name, event_id, _data in found} == {"0.-1.-1"}


def test_it_waits_for_the_evaluation(vera: User, run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_series, "POLL_SECONDS", 0.02)
    job = Evaluation.objects.submit(publish(run), None)
    _response, text = asyncio.run(read(vera, run, pieces=2))
    assert parse(text)[-1][2] == {"state": "succeeded", "over": False}
    finish(job)
    _response, text = asyncio.run(read(vera, run))
    assert parse(text)[-1][0] == "end"


def test_it_ends_when_the_user_leaves_the_project(
    vera: User, run: TrainingRun, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_series, "POLL_SECONDS", 0.02)

    async def follow() -> list[str]:
        pieces = []
        async for piece in metric_series.events(vera, run.pk, Cursor()):
            pieces.append(piece)
            await asyncio.to_thread(project.memberships.filter(user=vera).delete)
        return pieces

    assert len(asyncio.run(follow())) <= 2


def test_it_ends_when_the_account_is_deactivated(vera: User, run: TrainingRun) -> None:
    assert metric_series.latest_update(vera, run.pk, Cursor())
    User.objects.filter(pk=vera.pk).update(is_active=False)
    assert metric_series.latest_update(vera, run.pk, Cursor()) is None
