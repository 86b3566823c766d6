"""Chats with an inference server of the operator, such as vLLM: OpenAI's protocol, adapters loaded as needed.

The address comes from the settings alone, so that no page can make the web process call anywhere else, and no
redirect is followed. The server sees DATA_DIR at the same path, from which it loads adapters.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
from django.conf import settings
from django.utils.translation import gettext as _

from dashboard.models import Adapter
from workers.contract.chat import ChatSettings, End, Text

# Until the server accepts a connection; between two parts of an answer, which may wait for its turn.
CONNECT_SECONDS, SILENT_SECONDS = 5.0, 300.0
ERROR_LETTERS, ERROR_BYTES = 300, 20_000


class ServerFailure(Exception):
    """A chat that the server did not answer. `kind`: invalid, unknown, unavailable or broken."""

    def __init__(self, kind: str, code: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.code, self.message = kind, code, message


async def stream_from_server(
    adapter: Adapter | None, messages: Sequence[dict[str, str]], chat: ChatSettings
) -> AsyncGenerator[Text | End, None]:
    """Send a chat, and return its answer's parts once the server has accepted it. Raises ServerFailure."""
    client = new_client()
    body = request_body(adapter, messages, chat)
    try:
        response = await open_chat(client, body)
        if response.status_code == 404 and adapter is not None:
            # A server that has started anew has lost its adapters.
            await response.aclose()
            await load_adapter(client, adapter)
            response = await open_chat(client, body)
        if response.status_code != 200:
            raise await refusal_of(response)
    except BaseException:
        await client.aclose()
        raise
    return parts_of(client, response)


def new_client() -> httpx2.AsyncClient:
    server = settings.INFERENCE_SERVER
    return httpx2.AsyncClient(
        base_url=server.url.rstrip("/") + "/",
        headers={"Authorization": f"Bearer {server.key}"} if server.key else {},
        timeout=httpx2.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS),
        follow_redirects=False,
    )


def request_body(
    adapter: Adapter | None, messages: Sequence[dict[str, str]], chat: ChatSettings
) -> dict[str, Any]:
    """Return the request. An adapter is named by the hash of its content, which no other one can have."""
    return {
        "model": adapter.folder if adapter else settings.INFERENCE_SERVER.model,
        "messages": list(messages),
        "max_tokens": chat.max_tokens,
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "seed": chat.seed,
        "stop": list(chat.stop),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def open_chat(client: httpx2.AsyncClient, body: dict[str, Any]) -> httpx2.Response:
    """Send the request; the answer's body is not read yet."""
    try:
        return await client.send(client.build_request("POST", "chat/completions", json=body), stream=True)
    except httpx2.HTTPError as error:
        raise unavailable() from error


async def load_adapter(client: httpx2.AsyncClient, adapter: Adapter) -> None:
    """Let the server load an adapter's folder."""
    body = {"lora_name": adapter.folder, "lora_path": str(Path(adapter.path()).resolve())}
    try:
        response = await client.post("load_lora_adapter", json=body)
    except httpx2.HTTPError as error:
        raise unavailable() from error
    # Of two requests that load it at once, the server refuses one; its chat is answered all the same.
    if response.status_code not in (200, 400):
        text = _("The inference server does not load adapters while it runs (it answers %(status)d).")
        raise ServerFailure("unavailable", "adapter_not_loaded", text % {"status": response.status_code})


async def refusal_of(response: httpx2.Response) -> ServerFailure:
    """Return the failure that a status means."""
    status = response.status_code
    said = await error_text(response)
    if status == 404:
        text = _("The inference server has no such model, and did not load it. %(said)s")
        return ServerFailure("unknown", "model_not_found", (text % {"said": said}).strip())
    if status in (400, 422):
        text = _("The inference server refused the messages. %(said)s")
        return ServerFailure("invalid", "refused", (text % {"said": said}).strip())
    text = _("The inference server answers with status %(status)d. Try again shortly.")
    return ServerFailure("unavailable", "server_failed", text % {"status": status})


async def error_text(response: httpx2.Response) -> str:
    """Return the beginning of the message of an error in OpenAI's format; "" for anything else."""
    content = b""
    try:
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > ERROR_BYTES:
                return ""
        values = json.loads(content)
        message = values.get("error", values).get("message", "")
    except (httpx2.HTTPError, ValueError, AttributeError):
        return ""
    finally:
        await response.aclose()
    return message[:ERROR_LETTERS] if isinstance(message, str) else ""


def unavailable() -> ServerFailure:
    text = _("The inference server %(host)s does not answer. Try again shortly.")
    return ServerFailure("unavailable", "server_away", text % {"host": settings.INFERENCE_SERVER.host})


async def parts_of(client: httpx2.AsyncClient, response: httpx2.Response) -> AsyncGenerator[Text | End, None]:
    """Yield an answer's parts, of which the last is an End; closing it cancels the request."""
    tokens, reason = 0, ""
    usage: dict[str, Any] = {}
    try:
        async with aclosing(response.aiter_lines()) as lines:  # type: ignore[type-var]
            async for line in lines:
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                chunk = json.loads(data)
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices", []):
                    reason = choice.get("finish_reason") or reason
                    if text := choice["delta"].get("content"):
                        tokens += 1
                        yield Text(text, tokens)
        if not reason:
            raise ValueError("the answer has no end")
    except (httpx2.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = _("The inference server stopped in the middle of the answer. Send the prompt again.")
        raise ServerFailure("broken", "server_stopped", text) from error
    finally:
        await response.aclose()
        await client.aclose()
    yield End(
        "length" if reason == "length" else "stop",
        int(usage.get("prompt_tokens", 0)),
        int(usage.get("completion_tokens", tokens)),
    )
