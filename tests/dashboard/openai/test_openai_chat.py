"""Chat completions of the OpenAI-compatible API.

An engine with a script stands in for the inference job: these tests are about the translation, and about
answers that a real one does not give on request.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion

from dashboard.models import Adapter, ApiToken, BaseModel, Job, Project, State, User
from dashboard.models.jobs.job_state import db_now
from tests.conftest import finish
from tests.dashboard.openai.scripted_engine import HELLO, engine
from tests.openai_client import AsgiTransport, Connect, client_of
from workers.contract.chat import ChatEvent, Refused

HI = [{"role": "user", "content": "hi"}]


def chat(client: OpenAI, model: str = "example/tiny", **options: Any) -> ChatCompletion:
    return client.chat.completions.create(**{"model": model, "messages": HI, **options})


def test_answer_has_text_and_tokens(client: OpenAI, base_model: BaseModel) -> None:
    with engine(base_model) as asked:
        answer = chat(client, temperature=0, max_tokens=5, seed=3, stop=["x"], top_p=0.5)
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", "example/tiny")
    assert answer.choices[0].message.content == "Hello\nyou"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert answer.usage.to_dict() == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    [request] = asked.requests
    assert request.messages == HI
    settings = request.settings
    assert (settings.temperature, settings.max_tokens, settings.seed) == (0, 5, 3)
    assert (settings.stop, settings.top_p) == (("x",), 0.5)


def test_adapter_is_asked_by_its_folder(client: OpenAI, adapter: Adapter, base_model: BaseModel) -> None:
    name = adapter.openai_name
    with engine(base_model) as asked:
        assert chat(client, name, max_completion_tokens=9).model == name
    assert asked.requests[0].adapter == adapter.folder
    assert asked.requests[0].settings.max_tokens == 9


def test_defaults_are_those_of_openai(client: OpenAI, base_model: BaseModel) -> None:
    with engine(base_model) as asked:
        chat(client)
        chat(client)
    first, second = (request.settings for request in asked.requests)
    assert (first.temperature, first.top_p, first.max_tokens) == (1, 1, 512)
    assert first.seed != second.seed


@pytest.mark.django_db(transaction=True)
def test_a_model_without_memory_is_tried_again_later(client: OpenAI, base_model: BaseModel) -> None:
    job = finish(
        base_model.serve(), State.FAILED, error_code="out_of_memory", error_message="Too little memory."
    )
    for _number in range(2):
        with pytest.raises(openai.InternalServerError) as refused:
            chat(client)
        assert (refused.value.status_code, refused.value.code) == (503, "out_of_memory")
        assert refused.value.response.headers["Retry-After"] == "30"
    assert Job.objects.get(kind=Job.Kind.SERVE) == job, "it is not loaded again at once"
    Job.objects.update(finished_at=db_now(timedelta(seconds=-31)))
    with pytest.raises(openai.InternalServerError) as refused:
        chat(client)
    assert refused.value.code != "out_of_memory"


def test_roles_and_parts_are_translated(client: OpenAI, base_model: BaseModel) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    with engine(base_model) as asked:
        earlier = chat(client).choices[0].message
        chat(
            client,
            messages=[
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": parts},
                earlier,
            ],
        )
    assert asked.requests[1].messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "Hello\nyou"},
    ]


def test_stream_has_role_text_reason_and_usage(client: OpenAI, base_model: BaseModel) -> None:
    with engine(base_model):
        chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))  # type: ignore[arg-type]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}  # type: ignore[attr-defined]
    *parts, counted = chunks
    deltas = [part.choices[0].delta.to_dict() for part in parts]  # type: ignore[attr-defined]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo\nyou"}, {}]
    assert [part.choices[0].finish_reason for part in parts] == [None, None, None, "stop"]  # type: ignore[attr-defined]
    assert counted.choices == []  # type: ignore[attr-defined]
    assert counted.usage.total_tokens == 10  # type: ignore[attr-defined]


def test_stream_ends_with_done(client: OpenAI, base_model: BaseModel) -> None:
    with engine(base_model):
        answer = client.chat.completions.with_raw_response.create(
            model="example/tiny",
            messages=HI,
            stream=True,  # type: ignore[arg-type]
        )
    lines = answer.http_response.text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["choices"] for line in lines[:-1])
    assert answer.http_response.headers["Content-Type"] == "text/event-stream"


@pytest.mark.parametrize("end", [[], [Refused("adapter_missing", "The adapter was deleted.")]])
def test_error_in_mid_answer_is_an_event(client: OpenAI, base_model: BaseModel, end: list[ChatEvent]) -> None:
    with engine(base_model, [*HELLO[:2], *end]):
        stream = iter(chat(client, stream=True))  # type: ignore[call-overload]
        assert [next(stream).choices[0].delta.content for _part in range(2)] == ["", "Hel"]
        with pytest.raises(openai.APIError):
            next(stream)


def test_half_an_answer_is_tried_again(
    connect: Connect,
    token: str,
    base_model: BaseModel,
    transport: AsgiTransport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with engine(base_model, HELLO[:2]) as broken:

        def mend(*_args: Any, **_options: Any) -> None:
            broken.events = HELLO

        monkeypatch.setattr(OpenAI, "_sleep_for_retry", mend)
        assert chat(connect(token, max_retries=1)).choices[0].message.content == "Hello\nyou"
    assert len(transport.requests) == 2


def test_client_that_goes_away_cancels_its_request(
    client: OpenAI, base_model: BaseModel, transport: AsgiTransport
) -> None:
    with engine(base_model, HELLO[:2]) as busy:
        busy.waits = True
        transport.leaves_after = "Hel"
        chat(client, stream=True)  # type: ignore[call-overload]
        assert busy.cancelled.wait(10)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"logprobs": True}, "logprobs"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    ({"presence_penalty": 1}, "presence_penalty"),
    ({"extra_body": {"made_up": 1}}, "made_up"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0.role"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages.0.content",
    ),
    ({"messages": [{"role": "user", "content": "a\x00"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "x", "name": "Ed"}]}, "messages.0.name"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 10**9}, "max_completion_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"stream_options": {"other": 1}}, "stream_options.other"),
]


def test_unsupported_chat_is_refused(client: OpenAI, base_model: BaseModel) -> None:
    for options, param in WRONG:
        with pytest.raises(openai.BadRequestError) as refused:
            chat(client, **options)
        assert refused.value.param == param


def test_settings_without_an_effect_are_accepted(client: OpenAI, base_model: BaseModel) -> None:
    with engine(base_model):
        chat(
            client,
            n=1,
            tools=[],
            response_format={"type": "text"},
            logprobs=False,
            user="u",
            presence_penalty=0,
        )


def test_prompt_beyond_the_context_is_a_bad_request(client: OpenAI, base_model: BaseModel) -> None:
    with (
        engine(base_model, [Refused("too_long", "The prompt has 900 tokens.")]),
        pytest.raises(openai.BadRequestError, match="900 tokens") as refused,
    ):
        chat(client)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


def test_deleted_adapter_is_not_found(client: OpenAI, adapter: Adapter, base_model: BaseModel) -> None:
    with engine(base_model, [Refused("adapter_missing", "Gone.")]), pytest.raises(openai.NotFoundError):
        chat(client, adapter.openai_name)


@pytest.mark.parametrize("stream", [False, True])
def test_busy_model_says_when_to_come_back(client: OpenAI, base_model: BaseModel, stream: bool) -> None:
    with (
        engine(base_model, [Refused("busy", "All slots are taken.")]),
        pytest.raises(openai.InternalServerError) as refused,
    ):
        chat(client, stream=stream)
    assert (refused.value.status_code, refused.value.code) == (503, "busy")
    assert int(refused.value.response.headers["Retry-After"]) > 0


@pytest.mark.django_db(transaction=True)
def test_first_chat_starts_the_model(client: OpenAI, base_model: BaseModel) -> None:
    with pytest.raises(openai.InternalServerError) as refused:
        chat(client)
    assert refused.value.status_code == 503
    assert int(refused.value.response.headers["Retry-After"]) > 0
    assert Job.objects.get(kind="serve").state == "queued"


def test_unknown_model_is_not_found(
    connect: Connect, client: OpenAI, adapter: Adapter, otto: User, other_project: Project
) -> None:
    stranger = client_of(connect, other_project, otto)
    for caller, model in (
        (client, "example/other"),
        (stranger, "example/tiny"),
        (stranger, adapter.openai_name),
    ):
        with pytest.raises(openai.NotFoundError) as refused:
            chat(caller, model)
        assert refused.value.param == "model"


def test_retired_adapter_is_not_found(client: OpenAI, adapter: Adapter) -> None:
    adapter.set_stage("retired")
    with pytest.raises(openai.NotFoundError):
        chat(client, adapter.openai_name)


def test_read_token_cannot_chat(connect: Connect, base_model: BaseModel, project: Project, ed: User) -> None:
    with pytest.raises(openai.PermissionDeniedError):
        chat(client_of(connect, project, ed, scope=ApiToken.Scope.READ))
