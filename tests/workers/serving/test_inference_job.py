"""A base model's inference job and the relay of chats to it, with a real engine."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from asgiref.testing import ApplicationCommunicator
from django.conf import settings
from django.test import Client
from django.urls import reverse

from dashboard import chat_relay
from dashboard.asgi import application
from dashboard.chat_relay import ChatBroken, ChatModel, ChatUnavailable, EngineState, ModelUnknown
from dashboard.models import BaseModel, Job, Outbox, Project, State, User, WorkerNode
from tests.conftest import make_base_model
from tests.workers.conftest import claim, kill_engine, run_until
from workers.contract.chat import ChatSettings, End, Text
from workers.contract.chat_connections import connection_key

pytestmark = pytest.mark.django_db(transaction=True)
CSRF = "a" * 32
LONG = 400


@pytest.fixture(autouse=True)
def node(db: None) -> None:
    WorkerNode.objects.register("serve@test", queue="serve", host="test", pid=1)


async def chat(project: Project, base: BaseModel, prompt: str = "hello", **values: Any) -> list[Text | End]:
    messages = [{"role": "user", "content": prompt}]
    parts = await chat_relay.stream_chat(project, ChatModel(base), messages, ChatSettings(**values))
    return [part async for part in parts]


async def endless_prompt(project: Project, base: BaseModel) -> str:
    """Find a prompt that is answered until the limit of tokens."""
    for prompt in map(str, range(50)):
        if (await chat(project, base, prompt, max_tokens=LONG))[-1].tokens == LONG:
            return prompt
    raise AssertionError("every answer ends")


def post(path: str, headers: dict[str, str]) -> dict[str, Any]:
    """Return the ASGI scope of a form that is posted."""
    headers = headers | {"host": "localhost", "content-type": "application/x-www-form-urlencoded"}
    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": lines}


async def failure_of(parts: AsyncIterator[object]) -> str:
    """Return the code with which an answer breaks off."""
    try:
        async for _part in parts:
            pass
    except ChatBroken as failure:
        return failure.code
    return ""


def is_ready(base: BaseModel) -> Callable[[], bool]:
    return lambda: asyncio.run(chat_relay.is_ready(base))


def test_a_chat_needs_a_job_which_is_queued_once(project: Project, real_base: BaseModel) -> None:
    for _number in range(2):
        with pytest.raises(ChatUnavailable) as refusal:
            asyncio.run(chat(project, real_base))
        assert refusal.value.code == EngineState.STARTING
        assert refusal.value.retry_after
    job = Job.objects.get(kind=Job.Kind.SERVE)
    assert job.queue == Job.Queue.SERVE
    assert Outbox.objects.filter(job=job).exists()


def test_other_projects_chat_with_nothing_of_this_one(other_project: Project, real_base: BaseModel) -> None:
    with pytest.raises(ModelUnknown):
        asyncio.run(chat(other_project, real_base))
    assert not Job.objects.filter(kind=Job.Kind.SERVE).exists()


def test_a_job_without_worker_says_so(real_base: BaseModel) -> None:
    WorkerNode.objects.all().delete()
    assert asyncio.run(chat_relay.request_engine(real_base, None)) == EngineState.NO_WORKER


def test_a_job_of_another_base_model_is_waited_for(project: Project, real_base: BaseModel) -> None:
    make_base_model(project, "Other", "example/other").serve()
    claim("serve")
    Job.objects.filter(kind=Job.Kind.SERVE).update(worker="serve@test")
    assert asyncio.run(chat_relay.request_engine(real_base, None)) == EngineState.WAITING


def test_a_chat_is_answered_from_both_machines_and_a_stop_ends_the_job(
    project: Project, real_base: BaseModel, ed: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "INFERENCE_LISTEN", "127.0.0.1")
    job = real_base.serve(ed)
    assert claim("serve").pk == job.pk
    answers: list[list[Text | End]] = []

    def act() -> None:
        answers.append(asyncio.run(chat(project, real_base, max_tokens=8)))
        # On another machine nobody listens at the socket.
        real_base.socket().unlink()
        answers.append(asyncio.run(chat(project, real_base, max_tokens=8)))
        assert real_base.serve(ed).pk == job.pk, "an open job serves everybody"
        Job.objects.get(pk=job.pk).request_cancel(ed)

    job.refresh_from_db()
    ended = run_until(job, is_ready(real_base), act)
    assert answers[0][-1] == End("length", answers[0][-1].prompt_tokens, 8)  # type: ignore[union-attr]
    assert answers[1] == answers[0]
    assert connection_key(settings.SECRET_KEY) not in str(ended.spec)
    assert ended.state == State.CANCELLED
    assert real_base.serve(ed).pk != job.pk, "the next chat starts another one"


def test_it_ends_after_idle_minutes(
    real_base: BaseModel, monkeypatch: pytest.MonkeyPatch, work_off: Callable[[str], Job]
) -> None:
    monkeypatch.setattr(settings, "INFERENCE_IDLE_MINUTES", 0)
    real_base.serve()
    assert work_off("serve").state == State.SUCCEEDED


def test_a_browser_that_leaves_frees_its_slot(
    client: Client, vera: User, real_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "INFERENCE_ROWS", 1)
    real_base.serve()
    job = claim("serve")
    client.force_login(vera)
    headers = {"cookie": f"session={client.cookies['session'].value}; csrf={CSRF}", "x-csrftoken": CSRF}
    seconds: list[float] = []

    async def leave() -> None:
        assert real_base.project
        prompt = await endless_prompt(real_base.project, real_base)
        began = time.monotonic()
        await chat(real_base.project, real_base, prompt, max_tokens=LONG)
        seconds.append(time.monotonic() - began)
        page = ApplicationCommunicator(application, post(reverse("playground-answer"), headers))
        form = {"base": real_base.pk, "column": "base", "prompt": prompt, "temperature": 0, "seed": 1}
        body = urlencode(form | {"max_tokens": LONG}).encode()
        await page.send_input({"type": "http.request", "body": body})
        assert (await page.receive_output(30))["status"] == 200
        while b'"column"' not in (await page.receive_output(30))["body"]:
            pass
        await page.send_input({"type": "http.disconnect"})
        left = time.monotonic()
        await chat(real_base.project, real_base, max_tokens=1)
        seconds.append(time.monotonic() - left)

    def act() -> None:
        try:
            asyncio.run(leave())
        finally:
            Job.objects.get(pk=job.pk).request_cancel()

    run_until(job, is_ready(real_base), act)
    whole, after = seconds
    assert after < whole / 2


def test_a_killed_engine_breaks_the_answer_and_starts_again(project: Project, real_base: BaseModel) -> None:
    real_base.serve()
    job = claim("serve")
    failures: list[str] = []

    async def chat_and_kill() -> None:
        messages = [{"role": "user", "content": await endless_prompt(project, real_base)}]
        settings = ChatSettings(max_tokens=LONG)
        parts = await chat_relay.stream_chat(project, ChatModel(real_base), messages, settings)
        assert isinstance(await anext(parts), Text)
        await asyncio.to_thread(kill_engine, job)
        failures.append(await failure_of(parts))

    ended = run_until(job, is_ready(real_base), lambda: asyncio.run(chat_and_kill()))
    assert failures == ["engine_stopped"]
    assert ended.state == State.INTERRUPTED


def test_a_base_model_that_cannot_be_loaded_fails_the_job(real_base: BaseModel, tmp_path: Path) -> None:
    BaseModel.objects.filter(pk=real_base.pk).update(path=str(tmp_path))
    shutil.rmtree(tmp_path)
    real_base.refresh_from_db()
    real_base.serve()
    failures: list[str] = []

    async def wait() -> None:
        failures.append(await failure_of(chat_relay.starting_states(real_base, None)))

    job = claim("serve")
    ended = run_until(job, lambda: True, lambda: asyncio.run(wait()))
    assert (ended.state, ended.error_code) == (State.FAILED, "bad_model")
    assert failures == ["bad_model"]
