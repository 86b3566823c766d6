"""A reader that leaves its answer unread: bounded memory, and an end instead of a wait."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

from tests.tiny_model import tiny_base
from workers.contract.chat import MAX_UNREAD_BYTES, ChatEvent, Refused, Text, from_line
from workers.engine.base_models.model import load_tokenizer
from workers.engine.generation.requests import Token
from workers.engine.serving.answer_text import AnswerText
from workers.engine.serving.server import Chat, ChatServer


async def fill(event: Text) -> tuple[int, int]:
    """Send to a reader that reads nothing. Return how often it was accepted, and the bytes that wait."""
    near, far = socket.socketpair(socket.AF_UNIX)
    with far:
        _reader, writer = await asyncio.open_unix_connection(sock=near)
        chat = Chat(0, writer, 0, text=None)  # type: ignore[arg-type]
        sent = 0
        while chat.send(event):
            sent += 1
            assert sent < 10_000, "nothing stops it"
            await asyncio.sleep(0)
        waiting = writer.transport.get_write_buffer_size()
        writer.transport.abort()
    return sent, waiting


def test_a_slow_reader_is_given_up_within_the_limit() -> None:
    event = Text("x" * 1000, 1)
    sent, waiting = asyncio.run(fill(event))
    assert sent > 100
    assert MAX_UNREAD_BYTES < waiting < MAX_UNREAD_BYTES + 2000


def test_a_reader_that_has_gone_is_given_up() -> None:
    async def leave() -> bool:
        near, far = socket.socketpair(socket.AF_UNIX)
        far.close()
        reader, writer = await asyncio.open_unix_connection(sock=near)
        await reader.read()
        writer.close()
        return Chat(0, writer, 0, text=None).send(Text("x", 1))  # type: ignore[arg-type]

    assert not asyncio.run(leave())


def test_a_reader_that_goes_on_too_late_finds_the_reason(tiny_folder: Path) -> None:
    async def events() -> list[ChatEvent]:
        near, far = socket.socketpair(socket.AF_UNIX)
        _reader, writer = await asyncio.open_unix_connection(sock=near)
        tokenizer = load_tokenizer(tiny_base(tiny_folder))
        chat = Chat(0, writer, 7, AnswerText(tokenizer, ()))
        nothing: Any = None
        server = ChatServer(nothing, nothing, nothing, nothing)
        server.chats[0] = chat
        [word, *_] = tokenizer(" hello", add_special_tokens=False)["input_ids"]
        while server.chats:
            server._write(chat, Token(0, word, ""))
        writer.close()
        reader, late = await asyncio.open_unix_connection(sock=far)
        lines = (await reader.read()).splitlines()
        late.close()
        return [from_line(line) for line in lines]

    *texts, last = asyncio.run(events())
    assert all(isinstance(event, Text) for event in texts)
    assert isinstance(last, Refused)
    assert last.code == "slow_reader"
