"""The event stream of a run: points, progress and end; it can be resumed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.http import StreamingHttpResponse
from django.test import AsyncClient
from django.urls import reverse

from dashboard.charts.curves import Cursor
from dashboard.models import Evaluation, MetricSeries, Role, State, TrainingRun, User
from dashboard.views.readers import Reader
from dashboard.views.training import live_run, metric_series
from tests.conftest import finish
from tests.dashboard.conftest import publish
from tests.dashboard.routes import sign_in

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


def reader_of(user: User, run: TrainingRun) -> Reader:
    """Return the reader of a page that a new session of the user has opened."""
    return Reader.of(user, SessionStore(sign_in(user)), run.project_id)


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
    monkeypatch.setattr(live_run, "POLL_SECONDS", 0.05)

    reader = reader_of(vera, run)

    async def follow() -> str:
        append = partial(MetricSeries.objects.append, run, "train/loss", [(1, 3.0)])
        steps = iter((append, partial(end, run)))
        text = ""
        async for piece in metric_series.events(reader, run.pk, Cursor()):
            text += piece
            if "event: " in piece and (step := next(steps, None)):
                await asyncio.to_thread(step)
        return text

    names = [name for name, _id, _data in parse(asyncio.run(follow()))]
    assert names[0] == "progress"
    assert "points" in names
    assert names[-1] == "end"


def test_an_idle_stream_sends_pings(vera: User, run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_run, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(metric_series, "PING_SECONDS", 0.06)
    _response, text = asyncio.run(read(vera, run, pieces=4))
    found = parse(text)
    assert [name for name, _id, _data in found] == ["progress"] * 3, "each makes the page look for itself"
    assert {event_id for _name, event_id, _data in found} == {"0.-1.-1"}


def test_it_waits_for_the_evaluation(vera: User, run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_run, "POLL_SECONDS", 0.02)
    job = Evaluation.objects.submit(publish(run), None)
    _response, text = asyncio.run(read(vera, run, pieces=2))
    assert parse(text)[-1][2] == {"state": "succeeded", "over": False}
    finish(job)
    _response, text = asyncio.run(read(vera, run))
    assert parse(text)[-1][0] == "end"


def leave(user: User, run: TrainingRun) -> None:
    run.project.memberships.filter(user=user).delete()


def become_editor(user: User, run: TrainingRun) -> None:
    run.project.admit(user, Role.EDITOR)


def sign_out(user: User, _run: TrainingRun) -> None:
    Session.objects.all().delete()


def change_password(user: User, _run: TrainingRun) -> None:
    user.set_password("another horse battery")
    user.save()


def deactivate(user: User, _run: TrainingRun) -> None:
    User.objects.filter(pk=user.pk).update(is_active=False)


@pytest.mark.parametrize("change", [leave, become_editor, sign_out, change_password, deactivate])
def test_it_ends_when_the_access_changes(
    vera: User, run: TrainingRun, change: Callable[[User, TrainingRun], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_run, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(live_run, "ACCESS_SECONDS", 0.0)
    reader = reader_of(vera, run)

    async def follow() -> list[str]:
        pieces = []
        async for piece in metric_series.events(reader, run.pk, Cursor()):
            pieces.append(piece)
            if len(pieces) == 2:
                await asyncio.to_thread(change, vera, run)
        return pieces

    assert len(asyncio.run(asyncio.wait_for(follow(), 20))) == 2


def test_many_viewers_cost_one_look(
    vera: User, ed: User, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_run, "POLL_SECONDS", 0.05)
    looks, cursors = live_run.latest_updates, []

    def look(pk: int, asked: set[Cursor]) -> dict[Cursor, live_run.Update]:
        cursors.append(len(asked))
        return looks(pk, asked)

    monkeypatch.setattr(live_run, "latest_updates", look)
    readers = [reader_of(user, run) for user in (vera, ed) for _page in range(10)]

    async def read_all(reader: Reader) -> str:
        return "".join([piece async for piece in metric_series.events(reader, run.pk, Cursor())])

    async def follow() -> list[str]:
        async def train() -> None:
            await asyncio.sleep(0.3)
            await asyncio.to_thread(MetricSeries.objects.append, run, "train/loss", [(1, 3.0)])
            await asyncio.to_thread(end, run)

        texts, _none = await asyncio.gather(asyncio.gather(*map(read_all, readers)), train())
        return texts

    texts = asyncio.run(follow())
    assert {parse(text)[-1][0] for text in texts} == {"end"}
    assert all("3.0" in text for text in texts)
    assert set(cursors) == {1}, "all pages are told the same"
    assert len(live_run._watches) == 0


def test_an_unexpected_error_ends_the_stream(
    vera: User, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_run, "latest_updates", Mock(side_effect=ValueError("nobody expected it")))
    _response, text = asyncio.run(read(vera, run))
    assert parse(text) == [], "the browser opens another stream"
    assert len(live_run._watches) == 0
