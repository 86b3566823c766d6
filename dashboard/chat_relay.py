"""Relays chats between a web request and a base model's inference job or server, without a thread per stream.

`stream_chat` is for pages and API alike. The job listens on a Unix socket in the data folder, and on another
machine on TCP (INFERENCE_LISTEN). Callers check permissions on rows first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import close_old_connections
from django.db.models import TextChoices
from django.utils.translation import gettext as _

from dashboard import inference_server
from dashboard.models import Adapter, BaseModel, Job, Project, State, User, WorkerNode
from workers.contract.chat import (
    HAND_OVER,
    MAX_EVENT,
    Accepted,
    ChatEvent,
    ChatRequest,
    ChatSettings,
    End,
    Refused,
    Text,
    from_line,
)
from workers.contract.chat_connections import address_file, connection_key, proof_of, short_address
from workers.contract.errors import OutOfMemory

# A model loads within seconds, and a program asks again soon.
RETRY_SECONDS = 5
# A model that did not fit into the memory is not loaded again before.
MEMORY_SECONDS = 30
POLL_SECONDS = 0.5
# Until a request is accepted, and between two parts of an answer that waits for its turn.
ACCEPT_SECONDS, SILENT_SECONDS = 60.0, 300.0
# Until a job on another machine has accepted a connection.
CONNECT_SECONDS = 3.0


@dataclass(frozen=True)
class ChatModel:
    """A base model, or an adapter on it."""

    base: BaseModel
    adapter: Adapter | None = None

    def is_usable_by(self, project: Project) -> bool:
        """Return whether the project may chat with it: its own rows, and built-in base models."""
        if self.adapter is not None:
            return self.adapter.project_id == project.pk and self.adapter.base_model_id == self.base.pk
        return self.base.project_id in (None, project.pk)


class EngineState(TextChoices):
    """The state of a base model's inference job. The label is the sentence that pages show."""

    READY = "ready", _("Ready.")
    STARTING = "starting", _("Starting the model. The first time takes up to a minute.")
    WAITING = "waiting", _("Waiting for a free worker. It ends its chats with another base model first.")
    NO_WORKER = "no_worker", _("No worker for chats is running. Start Graftworks or this worker again.")


class ChatFailed(Exception):
    """A chat without an answer, or with half of one. `message` is for the user."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class ModelUnknown(ChatFailed):
    """The project has no such base model or adapter: 404."""


class ChatInvalid(ChatFailed):
    """The messages cannot be answered, for example because they are too long: 400."""


class ChatUnavailable(ChatFailed):
    """No answer now: starting, waiting, busy, or without worker or memory. 503 with `Retry-After`."""

    def __init__(self, code: str, message: str, retry_after: int = RETRY_SECONDS) -> None:
        super().__init__(code, message)
        self.retry_after = retry_after


class ChatBroken(ChatFailed):
    """The answer ended before its last token: the worker stopped, or its adapter was deleted."""


SERVER_FAILURES: dict[str, type[ChatFailed]] = {
    "invalid": ChatInvalid,
    "unknown": ModelUnknown,
    "unavailable": ChatUnavailable,
    "broken": ChatBroken,
}


async def stream_chat(
    project: Project,
    model: ChatModel,
    messages: Sequence[dict[str, str]],
    settings: ChatSettings,
    *,
    by: User | None = None,
) -> AsyncGenerator[Text | End, None]:
    """Send a chat and return its answer's parts, of which the last is an End.

    `messages`: dicts with exactly `role` (system, user, assistant) and `content` (text). It returns once the
    request is accepted, so that everything which has a status of its own is raised here: ModelUnknown,
    ChatInvalid, ChatUnavailable (a job is queued if none is alive), and `workers.contract.chat.ChatError` for
    messages in a wrong form. The iterator raises ChatBroken. Close it (`aclose`) to cancel the request;
    Django does so when the client has gone.
    """
    if not model.is_usable_by(project):
        raise ModelUnknown("model_not_found", _("This project has no such base model or adapter."))
    if model.base.has_operator_server:
        return await _stream_from_server(model, messages, settings)
    adapter = model.adapter.folder if model.adapter else ""
    request = ChatRequest(messages=list(messages), settings=settings, adapter=adapter)
    connection = await _connect(model.base.socket())
    if connection is None:
        state = await request_engine(model.base, by)
        raise ChatUnavailable(state.value, str(state.label))
    reader, writer = connection
    try:
        writer.write(request.to_line())
        await writer.drain()
        async with asyncio.timeout(ACCEPT_SECONDS):
            _accepted(await _read(reader))
    except TimeoutError as silent:
        writer.close()
        raise ChatUnavailable("busy", _("The model is busy. Try again shortly.")) from silent
    except BaseException:
        writer.close()
        raise
    return _parts(reader, writer)


async def _stream_from_server(
    model: ChatModel, messages: Sequence[dict[str, str]], settings: ChatSettings
) -> AsyncGenerator[Text | End, None]:
    """Send a chat to the operator's inference server instead."""
    # The checks of messages are the same for both.
    request = ChatRequest(messages=list(messages), settings=settings)
    try:
        parts = await inference_server.stream_from_server(model.adapter, request.messages, settings)
    except inference_server.ServerFailure as failure:
        raise SERVER_FAILURES[failure.kind](failure.code, failure.message) from failure

    async def relayed() -> AsyncGenerator[Text | End, None]:
        try:
            async with contextlib.aclosing(parts) as open_parts:
                async for part in open_parts:
                    yield part
        except inference_server.ServerFailure as failure:
            raise SERVER_FAILURES[failure.kind](failure.code, failure.message) from failure

    return relayed()


def _accepted(event: ChatEvent) -> None:
    """Raise the refusal of a request."""
    if isinstance(event, Accepted):
        return
    if not isinstance(event, Refused):
        raise ChatBroken("engine_stopped", _("The worker sent no answer that can be read."))
    if event.code in ("busy", "stopping"):
        raise ChatUnavailable(event.code, event.message)
    if event.code == "adapter_missing":
        raise ModelUnknown(event.code, event.message)
    if event.code == "internal_error":
        raise ChatBroken(event.code, event.message)
    raise ChatInvalid(event.code, event.message)


async def _parts(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> AsyncGenerator[Text | End, None]:
    """Yield an answer's parts; the connection ends with it, which cancels a request that is not answered."""
    try:
        while True:
            try:
                # `wait_for` of Python 3.11 may lose the cancellation of a client that leaves.
                async with asyncio.timeout(SILENT_SECONDS):
                    event = await _read(reader)
            except TimeoutError as silent:
                raise ChatBroken("silent", _("The worker has stopped responding. Try again.")) from silent
            if isinstance(event, Refused):
                raise ChatBroken(event.code, event.message)
            if isinstance(event, Text | End):
                yield event
            if isinstance(event, End):
                return
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> ChatEvent:
    """Return the next event. Raises ChatBroken if the worker has gone."""
    try:
        return from_line(await reader.readline())
    except (ValueError, OSError) as error:
        message = _("The worker stopped in the middle of the answer. Send the prompt again.")
        raise ChatBroken("engine_stopped", message) from error


async def _connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """Return a connection to the inference job, or None if it does not listen."""
    with contextlib.suppress(OSError), short_address(path) as address:
        return await asyncio.open_unix_connection(address, limit=MAX_EVENT)
    # A job on another machine has left its address in the folder that both share.
    with contextlib.suppress(OSError, ValueError):
        host, port = json.loads(address_file(path).read_text())
        async with asyncio.timeout(CONNECT_SECONDS):
            return await _connect_to_host(host, port)
    return None


async def _connect_to_host(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection that has answered the job's challenge. Raises OSError or ValueError."""
    reader, writer = await asyncio.open_connection(host, port, limit=MAX_EVENT)
    try:
        challenge = await reader.readline()
        writer.write(proof_of(connection_key(settings.SECRET_KEY), challenge))
    except BaseException:
        writer.close()
        raise
    return reader, writer


async def is_ready(base: BaseModel) -> bool:
    """Return whether the inference job of this base model listens."""
    connection = await _connect(base.socket())
    if connection is not None:
        connection[1].close()
    return connection is not None


async def _ask_to_hand_over(base: BaseModel) -> None:
    """Ask the inference jobs of other base models to end soon if nobody uses them."""
    own = base.socket()
    # The sockets of jobs on other machines are seen here as well.
    for path in own.parent.glob("*.sock"):
        if path != own and (connection := await _connect(path)):
            connection[1].write(HAND_OVER)
            connection[1].close()


async def request_engine(base: BaseModel, by: User | None) -> EngineState:
    """Queue the inference job of a base model if none is open, and return its state.

    Raises ChatInvalid for a base model that is not ready, and ChatUnavailable if it did not fit just now.
    """
    if base.has_operator_server:
        return EngineState.READY
    # A thread-sensitive call would hold one database connection per stream.
    state, _job = await _request(base, by)
    return state


async def starting_states(base: BaseModel, by: User | None) -> AsyncIterator[EngineState]:
    """Queue the inference job if none is open, and yield each of its states until it is ready.

    Raises ChatInvalid for a base model that is not ready, ChatUnavailable if it does not fit into the memory,
    and ChatBroken if the job fails in another way or is stopped.
    """
    if base.has_operator_server:
        yield EngineState.READY
        return
    state, job = await _request(base, by)
    while not await is_ready(base):
        yield state
        await asyncio.sleep(POLL_SECONDS)
        state, job = await _request(base, by, job)
    yield EngineState.READY


async def _request(base: BaseModel, by: User | None, job: int | None = None) -> tuple[EngineState, int]:
    state, job = await sync_to_async(_request_in_thread, thread_sensitive=False)(base, by, job)
    if state == EngineState.WAITING:
        await _ask_to_hand_over(base)
    return state, job


def _request_in_thread(base: BaseModel, by: User | None, known: int | None) -> tuple[EngineState, int]:
    """Return the state and the id of the job; `known` is the job that the caller waits for."""
    close_old_connections()
    try:
        if not base.is_ready:
            raise ChatInvalid("base_not_ready", _("This base model is not ready yet. Its page shows why."))
        job = (known and Job.objects.filter(pk=known).first()) or base.job_without_memory(MEMORY_SECONDS)
        job = job or base.serve(by)
        if job.error_code == OutOfMemory.code:
            raise ChatUnavailable(job.error_code, job.error_message, MEMORY_SECONDS)
        if job.is_over and job.state != State.SUCCEEDED:
            message = job.error_message or _("The model was stopped on the page Workers and queue.")
            raise ChatBroken(job.error_code or "stopped", message)
        job = base.serve(by) if job.is_over else job
        return _state_of(job), job.pk
    finally:
        close_old_connections()


def _state_of(job: Job) -> EngineState:
    if job.state != State.QUEUED:
        return EngineState.STARTING
    if not WorkerNode.objects.slots_by_worker(Job.Queue.SERVE):
        return EngineState.NO_WORKER
    return EngineState.STARTING if Job.objects.idle_slots(Job.Queue.SERVE) else EngineState.WAITING
