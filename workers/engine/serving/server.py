"""Answers chats over a socket: one base model, adapters as they are asked for, many answers at a time.

The event loop reads and writes connections; one thread owns the model, so that everything which touches it
comes one after the other. Prompts and answers are written to no file. Knows nothing of projects or users.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import json
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from workers.contract.chat import (
    HAND_OVER,
    MAX_LINE,
    MAX_UNREAD_BYTES,
    Accepted,
    ChatError,
    ChatEvent,
    ChatRequest,
    End,
    Refused,
    Text,
    to_line,
)
from workers.contract.chat_connections import address_file, parse_address, proof_of, short_address
from workers.contract.errors import DataError, RunError
from workers.contract.events import KeepAlive, Progress, Report, Result, ShouldStop
from workers.contract.specs import ServeSpec
from workers.engine import runtime
from workers.engine.base_models.model import check_folder, end_ids, load_base, load_tokenizer, max_positions
from workers.engine.generation.generator import Generator
from workers.engine.generation.requests import GenerationRequest, Sampling, Token
from workers.engine.runtime import stop_if_asked
from workers.engine.serving.answer_text import AnswerText
from workers.engine.serving.memory import count_weights, fit_tokens, has_room, served_model
from workers.engine.serving.prompts import PromptEncoder
from workers.engine.training.encoding import Ids
from workers.forecasting.inference_cost import ServedModel

ReplyT = TypeVar("ReplyT")
# Chats that wait for their turn; more are refused, so that people learn at once that they would wait long.
MAX_WAITING = 64
REQUEST_SECONDS = 10.0
POLL_SECONDS = 0.5
KEEP_ALIVE_SECONDS = 60.0
# Another base model waits for this worker: this job ends when nobody has asked it for so long.
HAND_OVER_SECONDS = 10.0


def serve(
    spec: ServeSpec,
    *,
    report: Report,
    should_stop: ShouldStop,
    listen: str = "",
    key: str = "",
    promised: int = 0,
) -> None:
    """Answer chats until none has come for `idle_seconds`, or until a stop.

    `listen`: the address for other machines, `host` or `host:port`; `key`: what they have to know.
    `promised`: bytes that trainings on this machine are still to take.
    """
    check_folder(spec.base)
    tokenizer = load_tokenizer(spec.base)
    with PromptEncoder(tokenizer) as prompts:
        prompts.start()
        device = runtime.pick_device()
        torch.set_num_threads(runtime.thread_count())
        dtype = runtime.pick_dtype(spec.dtype, device)
        memory = served_model(Path(spec.base.path), dtype, device)
        spec = replace(spec, max_tokens=fit_tokens(spec, memory, device, promised))
        report(Progress("loading"))
        base = load_base(spec.base, dtype, device)
        stop_if_asked(should_stop)
        generator = Generator(base, device, max_rows=spec.max_rows, max_tokens=spec.max_tokens)
        model = ChatModel(spec, base, tokenizer, prompts, generator, memory)
        server = ChatServer(spec, model, report, should_stop, key)
        asyncio.run(server.run(listen))
    report(Result({"chats": server.served, "tokens": server.tokens}))


@dataclass(eq=False)
class Chat:
    """A request that is being answered, and the connection that its answer goes to."""

    key: int
    writer: asyncio.StreamWriter
    prompt_tokens: int
    text: AnswerText
    tokens: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, event: ChatEvent) -> bool:
        """Write an event. Return False if the reader has gone, or leaves too much unread."""
        if self.writer.is_closing() or self.writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            return False
        self.write(event)
        return True

    def write(self, event: ChatEvent) -> None:
        """Write an event, however much is left unread."""
        self.writer.write(to_line(event))


class Refusal(Exception):
    """A request that is not answered."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.event = Refused(code, message)


class ChatModel:
    """The model with its adapters. Every method runs in the thread that owns it."""

    def __init__(
        self,
        spec: ServeSpec,
        base: Any,
        tokenizer: Any,
        prompts: PromptEncoder,
        generator: Generator,
        memory: ServedModel,
    ) -> None:
        self.spec, self.tokenizer, self.prompts, self.generator = spec, tokenizer, prompts, generator
        self.memory, self.device = memory, base.device
        self.weights: dict[str, int] = {}  # of each adapter that was loaded
        self.end_ids = frozenset(end_ids(base, tokenizer))
        self.limit = min(spec.max_tokens // 64 * 64, max_positions(base) or spec.max_tokens)

    def submit(self, key: int, request: ChatRequest) -> int:
        """Queue a request and return its tokens. Raises Refusal."""
        prompt = self._encode(request)
        settings = request.settings
        sampling = Sampling(
            max_new_tokens=min(settings.max_tokens, self.limit - len(prompt)),
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
        )
        adapter = self._load(request.adapter) if request.adapter else None
        self.generator.submit(GenerationRequest(key, prompt, adapter, sampling, self.end_ids))
        return len(prompt)

    def _encode(self, request: ChatRequest) -> Ids:
        try:
            prompt = self.prompts.encode(request.messages)
        except DataError as error:
            raise Refusal("bad_messages", error.message) from error
        except RunError as error:
            raise Refusal("bad_template", error.message) from error
        if not len(prompt):
            raise Refusal("bad_messages", "The messages contain no text.")
        if len(prompt) >= self.limit:
            raise Refusal(
                "too_long",
                f"The prompt has {len(prompt):,} tokens; prompt and answer may have {self.limit:,} together. "
                "Shorten it.",
            )
        return prompt

    def _load(self, name: str) -> str:
        folder = Path(self.spec.adapters) / name
        if not folder.is_dir():
            raise Refusal("adapter_missing", "The files of this adapter are no longer on this machine.")
        if name not in self.generator.adapters:
            try:
                self.weights[name] = count_weights(folder.glob("adapter_model.safetensors"))
                self._make_room(name)
                self.generator.load_adapter(name, folder)
            except RunError as error:
                raise Refusal("bad_adapter", error.message) from error
        return name

    def _make_room(self, wanted: str) -> None:
        """Unload adapters, the least recently used first, until this one may be loaded."""
        for name in list(self.generator.adapters):
            if not self._lack(wanted):
                return
            with contextlib.suppress(ValueError):  # in use
                self.generator.unload_adapter(name)
        if lack := self._lack(wanted):
            raise Refusal("busy", f"{lack} Try again shortly.")

    def _lack(self, wanted: str) -> str:
        """Return what one more adapter lacks, or ""."""
        loaded = self.generator.adapters
        if len(loaded) >= self.spec.max_adapters:
            return "All adapters in memory are in use."
        weights = sum(self.weights[name] for name in (*loaded, wanted))
        is_small = has_room(self.spec, self.memory, self.device, weights)
        return "" if is_small else "The worker's machine has no memory for this adapter."


class ChatServer:
    """Connections of the web process, and the loop that answers them."""

    def __init__(
        self, spec: ServeSpec, model: ChatModel, report: Report, should_stop: ShouldStop, key: str = ""
    ) -> None:
        self.spec, self.model, self.report, self.should_stop = spec, model, report, should_stop
        self.key = key
        self.owner = ThreadPoolExecutor(1, "model")
        self.keys = itertools.count()
        self.chats: dict[int, Chat] = {}
        self.work = asyncio.Event()
        self.last_used = self.last_report = time.monotonic()
        self.hand_over_requested = False
        self.served = self.tokens = 0

    async def run(self, listen: str = "") -> None:
        """Answer until the end of the job."""
        path = Path(self.spec.socket)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        with short_address(path) as address:
            servers = [await asyncio.start_unix_server(self._handle, address, limit=MAX_LINE)]
        path.chmod(0o600)
        # Left by a job that was killed.
        address_file(path).unlink(missing_ok=True)
        if listen:
            servers.append(await self._listen_on_network(listen))
        self.report(Progress("serving"))
        try:
            while not self._is_over():
                stop_if_asked(self.should_stop)
                self._keep_alive()
                if self.model.generator.is_idle:
                    await self._wait_for_work()
                else:
                    self._pass_on(await self._call(self.model.generator.step))
        finally:
            for server in servers:
                server.close()
            for chat in list(self.chats.values()):
                chat.send(Refused("stopping", "The worker is shutting down. Send the prompt again."))
                self._end(chat)
            # Lets the connections write what they hold.
            await asyncio.sleep(0.05)
            self.owner.shutdown(wait=False)

    async def _listen_on_network(self, listen: str) -> asyncio.Server:
        """Listen for other machines, and write the address that they read."""
        host, port = parse_address(listen)
        try:
            server = await asyncio.start_server(self._admit, host, port, limit=MAX_LINE)
        except OSError as error:
            message = (
                f"The inference job cannot listen on {listen} ({error.strerror}). Check INFERENCE_LISTEN."
            )
            raise RunError(message, code="cannot_listen") from error
        file = address_file(Path(self.spec.socket))
        new = file.with_suffix(".new")
        new.write_text(json.dumps(server.sockets[0].getsockname()[:2]))
        new.replace(file)
        return server

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a connection of another machine once it has proved that it knows the key."""
        challenge = secrets.token_hex().encode()
        writer.write(challenge + b"\n")
        proof = b""
        with contextlib.suppress(TimeoutError, OSError, ValueError):
            proof = await asyncio.wait_for(reader.readline(), REQUEST_SECONDS)
        if hmac.compare_digest(proof, proof_of(self.key, challenge)):
            await self._handle(reader, writer)
        else:
            writer.close()

    async def _call(self, function: Callable[..., ReplyT], *arguments: Any) -> ReplyT:
        return await asyncio.get_running_loop().run_in_executor(self.owner, function, *arguments)

    def _is_over(self) -> bool:
        if self.chats:
            self.last_used = time.monotonic()
            return False
        limit = HAND_OVER_SECONDS if self.hand_over_requested else self.spec.idle_seconds
        return time.monotonic() - self.last_used > limit

    def _keep_alive(self) -> None:
        if time.monotonic() - self.last_report > KEEP_ALIVE_SECONDS:
            self.last_report = time.monotonic()
            self.report(KeepAlive())

    async def _wait_for_work(self) -> None:
        self.work.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.work.wait(), POLL_SECONDS)

    def _pass_on(self, tokens: list[Token]) -> None:
        """Write the tokens of one step to the readers of their answers."""
        for token in tokens:
            # A request that was cancelled during the step is not there any more.
            if chat := self.chats.get(token.key):  # type: ignore[call-overload]
                self._write(chat, token)

    def _write(self, chat: Chat, token: Token) -> None:
        text = ""
        if token.id is not None:
            chat.tokens += 1
            self.tokens += 1
            text = chat.text.add(token.id)
        if token.finish:
            text += chat.text.finish()
        if text and not chat.send(Text(text, chat.tokens)):
            # A reader that goes on later finds this at the end.
            chat.write(Refused("slow_reader", "The answer was cancelled because it was read too slowly."))
            self._end(chat)
        elif token.finish or chat.text.is_stopped:
            reason = "stop" if chat.text.is_stopped else token.finish
            chat.write(End(reason, chat.prompt_tokens, chat.tokens))
            self._end(chat)

    def _end(self, chat: Chat) -> None:
        self.chats.pop(chat.key, None)
        chat.ended.set()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection; cancel its request when the other side closes it."""
        try:
            line = await asyncio.wait_for(reader.readline(), REQUEST_SECONDS)
            self.last_used = time.monotonic() if line and line != HAND_OVER else self.last_used
            if line == HAND_OVER:
                self.hand_over_requested = True
            elif line:
                await self._answer(ChatRequest.from_line(line), reader, writer)
        except Refusal as refusal:
            writer.write(to_line(refusal.event))
        except (ChatError, ValueError) as error:
            writer.write(to_line(Refused("bad_messages", getattr(error, "message", "The line is too long."))))
        except (TimeoutError, OSError):
            pass
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def _answer(
        self, request: ChatRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if len(self.chats) >= self.spec.max_rows + MAX_WAITING:
            raise Refusal("busy", "Too many prompts wait for this model. Try again shortly.")
        chat = Chat(next(self.keys), writer, 0, AnswerText(self.model.tokenizer, request.settings.stop))
        # Known before the first token of it can come.
        self.chats[chat.key] = chat
        self.hand_over_requested = False
        try:
            chat.prompt_tokens = await self._call(self.model.submit, chat.key, request)
            chat.send(Accepted(chat.prompt_tokens))
            self.work.set()
            await self._wait(chat, reader)
            self.served += 1
        finally:
            self._end(chat)
            # Does nothing for an answer that has ended.
            await self._call(self.model.generator.cancel, chat.key)

    async def _wait(self, chat: Chat, reader: asyncio.StreamReader) -> None:
        """Wait for the end of the answer, or for the other side to close the connection."""
        waits = [asyncio.ensure_future(chat.ended.wait()), asyncio.ensure_future(reader.read(1))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
