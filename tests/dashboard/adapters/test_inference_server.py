"""An operator's inference server, with a real HTTP server that speaks vLLM's protocol."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse

from dashboard import chat_relay
from dashboard.chat_relay import (
    ChatBroken,
    ChatFailed,
    ChatInvalid,
    ChatModel,
    ChatUnavailable,
    EngineState,
    ModelUnknown,
)
from dashboard.models import Adapter, Job, Project, TrainingRun, User
from dashboard.models.adapters.unloading import TIMEOUT_SECONDS
from dashboard.models.operations.run_deletion import delete_runs
from tests.conftest import finish
from tests.dashboard.routes import publish_adapter
from workers.contract.chat import ChatSettings, End, Text
from workers.contract.judge import Endpoint

KEY = "secret-key"


@dataclass
class Server:
    """The models that the server serves, its answers, and the requests that it got."""

    address: str = ""
    models: set[str] = field(default_factory=set)
    status: int = 200
    breaks: bool = False
    can_load: bool = True
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    @property
    def paths(self) -> list[str]:
        return [path.rpartition("/")[2] for path, _body in self.requests]


def handler_for(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: Any) -> None:
            pass

        def reply(self, status: int, message: str) -> None:
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:9/")
            self.end_headers()
            self.wfile.write(json.dumps({"error": {"message": message}}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append((self.path, body))
            server.keys.add(self.headers["Authorization"])
            if self.path == "/v1/load_lora_adapter" and server.can_load:
                server.models.add(body["lora_name"])
                self.reply(200, "loaded")
            elif self.path == "/v1/unload_lora_adapter" and body["lora_name"] in server.models:
                server.models.remove(body["lora_name"])
                self.reply(server.status, "unloaded")
            elif self.path == "/v1/chat/completions" and server.status != 200:
                self.reply(server.status, "That is too long.")
            elif self.path == "/v1/chat/completions" and body["model"] in server.models:
                self.stream()
            else:
                self.reply(404, "no such model")

        def stream(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for text in ("Hel", "lo"):
                self.event({"choices": [{"delta": {"content": text}, "finish_reason": None}]})
            if not server.breaks:
                self.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
                self.event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}})
                self.wfile.write(b"data: [DONE]\n\n")

        def event(self, chunk: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

    return Handler


@pytest.fixture
def adapter(run: TrainingRun) -> Adapter:
    return publish_adapter(run)


@pytest.fixture
def server(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of the adapter's base model."""
    name = adapter.base_model.hub_id
    found = Server(models={name})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler_for(found))
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    url = f"http://127.0.0.1:{http.server_port}/v1"
    monkeypatch.setattr(settings, "INFERENCE_SERVER", Endpoint(url, name, KEY))
    yield found
    http.shutdown()
    http.server_close()


def chat(adapter: Adapter, *, tuned: bool = True) -> list[Text | End]:
    async def answer() -> list[Text | End]:
        model = ChatModel(adapter.base_model, adapter if tuned else None)
        messages = [{"role": "user", "content": "Hello"}]
        parts = await chat_relay.stream_chat(adapter.project, model, messages, ChatSettings(max_tokens=9))
        return [part async for part in parts]

    return asyncio.run(answer())


def test_the_server_answers_and_no_job_is_started(adapter: Adapter, server: Server) -> None:
    assert chat(adapter, tuned=False) == [Text("Hel", 1), Text("lo", 2), End("stop", 7, 2)]
    assert asyncio.run(chat_relay.request_engine(adapter.base_model, None)) == EngineState.READY
    assert not Job.objects.filter(kind=Job.Kind.SERVE).exists()
    assert server.keys == {f"Bearer {KEY}"}
    _path, body = server.requests[0]
    assert (body["max_tokens"], body["temperature"], body["stream"]) == (9, 0.0, True)


def test_an_adapter_is_loaded_once(adapter: Adapter, server: Server) -> None:
    for _number in range(2):
        assert chat(adapter)[-1] == End("stop", 7, 2)
    assert server.paths == ["completions", "load_lora_adapter", "completions", "completions"]
    assert server.requests[1][1] == {"lora_name": adapter.folder, "lora_path": str(adapter.path().resolve())}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, ChatInvalid), (302, ChatUnavailable), (429, ChatUnavailable), (500, ChatUnavailable)],
)
def test_a_refusal_has_its_own_kind(
    adapter: Adapter, server: Server, status: int, kind: type[ChatFailed]
) -> None:
    server.status = status
    with pytest.raises(kind):
        chat(adapter, tuned=False)
    assert len(server.requests) == 1, "no redirect is followed"


def test_a_server_that_cannot_load_adapters_says_so(adapter: Adapter, server: Server) -> None:
    server.can_load = False
    with pytest.raises(ChatUnavailable) as failure:
        chat(adapter)
    assert failure.value.code == "adapter_not_loaded"


def test_an_unknown_model_is_unknown(adapter: Adapter, server: Server) -> None:
    server.models.clear()
    with pytest.raises(ModelUnknown):
        chat(adapter, tuned=False)


def test_an_answer_that_breaks_off_is_an_error(adapter: Adapter, server: Server) -> None:
    server.breaks = True
    with pytest.raises(ChatBroken):
        chat(adapter, tuned=False)


def test_a_server_that_is_away_is_unavailable(
    adapter: Adapter, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Endpoint("http://127.0.0.1:9/v1", adapter.base_model.hub_id)
    monkeypatch.setattr(settings, "INFERENCE_SERVER", away)
    with pytest.raises(ChatUnavailable):
        chat(adapter, tuned=False)


def test_other_base_models_keep_their_inference_job(
    adapter: Adapter, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        settings, "INFERENCE_SERVER", Endpoint(settings.INFERENCE_SERVER.url, "example/other")
    )
    assert not adapter.base_model.has_operator_server


def test_the_playground_names_the_server(
    client: Client, vera: User, adapter: Adapter, server: Server
) -> None:
    client.force_login(vera)
    page = client.get(reverse("playground"))
    assert page.context["playground"].server == settings.INFERENCE_SERVER.host
    assert KEY not in page.content.decode()


@pytest.fixture
def execute(django_capture_on_commit_callbacks: Any) -> Callable[[Callable[[], object]], int]:
    """Return a function that calls another one, commits, and returns how much was done on commit."""

    def call(act: Callable[[], object]) -> int:
        with django_capture_on_commit_callbacks(execute=True) as callbacks:
            act()
        return len(callbacks)

    return call


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def retire(client: Client, adapter: Adapter) -> Any:
    return client.post(reverse("adapter-stage", args=[adapter.pk]), {"stage": "retired"})


def test_a_retired_adapter_is_unloaded(
    client: Client, mara: User, adapter: Adapter, server: Server, execute: Callable[..., int]
) -> None:
    chat(adapter)
    client.force_login(mara)
    execute(lambda: retire(client, adapter))
    wait_until(lambda: adapter.folder not in server.models)
    assert server.requests[-1] == ("/v1/unload_lora_adapter", {"lora_name": adapter.folder})
    assert server.keys == {f"Bearer {KEY}"}


def test_a_deleted_adapter_is_unloaded(
    project: Project, adapter: Adapter, server: Server, execute: Callable[..., int]
) -> None:
    chat(adapter)
    finish(adapter.run.job)
    execute(lambda: delete_runs(project, [adapter.run_id]))
    wait_until(lambda: adapter.folder not in server.models)


def test_no_other_server_is_called(
    adapter: Adapter, server: Server, execute: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert execute(lambda: adapter.set_stage("approved")) == 0
    monkeypatch.setattr(settings, "INFERENCE_SERVER", Endpoint("", ""))
    assert execute(lambda: adapter.set_stage("retired")) == 0


@pytest.mark.parametrize("is_away", [False, True])
def test_a_failed_unload_is_logged(
    adapter: Adapter,
    server: Server,
    execute: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_away: bool,
) -> None:
    chat(adapter)
    server.status = 500
    if is_away:
        away = Endpoint("http://127.0.0.1:9/v1", adapter.base_model.hub_id)
        monkeypatch.setattr(settings, "INFERENCE_SERVER", away)
    execute(lambda: adapter.set_stage("retired"))
    wait_until(lambda: "unloads no adapter" in caplog.text)


def test_a_silent_server_holds_up_no_page(
    client: Client,
    mara: User,
    adapter: Adapter,
    server: Server,
    execute: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client.force_login(mara)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        monkeypatch.setattr(settings, "INFERENCE_SERVER", Endpoint(url, adapter.base_model.hub_id))
        began = time.monotonic()
        execute(lambda: retire(client, adapter))
        assert time.monotonic() - began < TIMEOUT_SECONDS / 2
        with silent.accept()[0] as connection:
            assert connection.recv(1)
