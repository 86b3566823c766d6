"""Answers of the playground that wait until no training runs any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlencode

import pytest
from asgiref.testing import ApplicationCommunicator
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dashboard.asgi import application
from dashboard.models import Job, TrainingRun, User
from dashboard.views.adapters import answer_streams
from tests.dashboard.adapters.test_playground import FORM
from tests.dashboard.openai.scripted_engine import HELLO, engine
from tests.workers.serving.test_inference_job import CSRF, post

pytestmark = pytest.mark.django_db(transaction=True)
Follow = Callable[[ApplicationCommunicator], Awaitable[None]]


@pytest.fixture
def ask(client: Client, vera: User, run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Send a prompt while a training runs, and follow its answer; return the engine's number of requests."""
    monkeypatch.setattr(answer_streams, "TRAINING_SECONDS", 0.02)
    Job.objects.filter(pk=run.job_id).update(state="running", eta_seconds=1_500)
    client.force_login(vera)
    headers = {"cookie": f"session={client.cookies['session'].value}; csrf={CSRF}", "x-csrftoken": CSRF}

    async def send(follow: Follow, form: dict[str, Any]) -> None:
        page = ApplicationCommunicator(application, post(reverse("playground-answer"), headers))
        await page.send_input({"type": "http.request", "body": urlencode(form).encode()})
        assert (await page.receive_output(30))["status"] == 200
        await follow(page)
        await page.wait(30)

    def answer(follow: Follow, **values: str) -> int:
        with engine(run.base_model, HELLO) as seen:
            form = FORM | {"base": run.base_model_id, "column": "base"} | values
            asyncio.run(send(follow, form))
            return len(seen.requests)

    return answer


async def event(page: ApplicationCommunicator) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await page.receive_output(30))["body"])
    return found


def test_an_answer_that_waits_begins_when_the_training_has_ended(
    ask: Callable[..., int], run: TrainingRun
) -> None:
    async def follow(page: ApplicationCommunicator) -> None:
        waiting = await event(page)
        assert waiting["state"] == (await event(page))["state"] == "training"
        assert waiting["text"] == "Waiting until the training has ended. About 25 min left."
        ended = Job.objects.filter(pk=run.job_id)
        await ended.aupdate(state="succeeded", finished_at=timezone.now())
        while (state := await event(page)) == waiting:
            pass
        assert state["state"] == "ready"
        assert (await event(page))["text"] == "Hel"

    assert ask(follow, wait="1") == 1


def test_an_answer_comes_beside_the_training_unless_it_is_to_wait(ask: Callable[..., int]) -> None:
    async def follow(page: ApplicationCommunicator) -> None:
        assert (await event(page))["state"] == "ready"

    assert ask(follow, wait="") == 1


def test_closing_the_tab_ends_the_wait(ask: Callable[..., int]) -> None:
    async def follow(page: ApplicationCommunicator) -> None:
        assert (await event(page))["state"] == "training"
        await page.send_input({"type": "http.disconnect"})

    assert ask(follow, wait="1") == 0
