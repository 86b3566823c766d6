"""Streams of answers end soon after the access of their reader has ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from urllib.parse import urlencode

import pytest
from asgiref.testing import ApplicationCommunicator
from django.contrib.sessions.models import Session
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dashboard import streams
from dashboard.asgi import application
from dashboard.models import Adapter, ApiToken, BaseModel, Membership, Role, TrainingRun, TryOutLink, User
from tests.dashboard.adapters.test_playground import FORM
from tests.dashboard.openai.scripted_engine import HELLO, engine
from tests.dashboard.routes import publish_adapter
from tests.workers.serving.test_inference_job import CSRF, post

FORM_HEADERS = {"cookie": f"csrf={CSRF}", "x-csrftoken": CSRF}
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "ACCESS_SECONDS", 0.1)


@pytest.fixture
def adapter(run: TrainingRun) -> Adapter:
    return publish_adapter(run)


def read(path: str, headers: dict[str, str], body: str, first: str, change: Callable[[], object]) -> str:
    """Return all of a stream whose reader's access changes when `first` has arrived."""

    async def follow() -> str:
        scope = post(path, headers) | {"client": ("127.0.0.1", 1)}
        page = ApplicationCommunicator(application, scope)
        await page.send_input({"type": "http.request", "body": body.encode()})
        assert (await page.receive_output(30))["status"] == 200
        text, is_changed, goes_on = "", False, True
        while goes_on:
            message = await page.receive_output(30)
            text, goes_on = text + message.get("body", b"").decode(), message.get("more_body", False)
            if first in text and not is_changed:
                is_changed = True
                await asyncio.to_thread(change)
        await page.wait(30)
        return text

    return asyncio.run(follow())


CHANGES: dict[str, Callable[[], object]] = {
    "sign-out": lambda: Session.objects.all().delete(),
    "removal": lambda: Membership.objects.all().delete(),
    "role": lambda: Membership.objects.update(role=Role.EDITOR),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_playground_stops_answering(client: Client, vera: User, adapter: Adapter, change: str) -> None:
    client.force_login(vera)
    headers = FORM_HEADERS | {"cookie": f"session={client.cookies['session'].value}; csrf={CSRF}"}
    form = urlencode(FORM | {"base": adapter.base_model_id, "column": "base"})
    # Without a worker the model never starts, and the stream would go on.
    text = read(reverse("playground-answer"), headers, form, "no_worker", CHANGES[change])
    assert {json.loads(line)["state"] for line in text.splitlines()} == {"no_worker"}


def test_a_revoked_link_stops_answering(adapter: Adapter, mara: User) -> None:
    link, secret = TryOutLink.issue(
        adapter.project, mara, adapter.base_model, [None, adapter], days=7, most_prompts=50, max_tokens=20
    )

    def revoke() -> None:
        TryOutLink.objects.filter(pk=link.pk).update(revoked_at=timezone.now())

    body = urlencode({"prompt": "Hello"})
    assert read(reverse("try-out-answer", args=[secret]), FORM_HEADERS, body, "no_worker", revoke)


def test_an_answer_of_the_api_ends_with_an_error(token: str, base_model: BaseModel) -> None:
    headers = {"authorization": f"Bearer {token}"}
    body = json.dumps(
        {"model": "example/tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    )
    with engine(base_model, HELLO[:2]) as busy:
        busy.waits = True
        text = read("/v1/chat/completions", headers, body, "Hel", ApiToken.objects.get().revoke)
        assert busy.cancelled.wait(10)
    assert (
        json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]["code"] == "unauthorized"
    )
