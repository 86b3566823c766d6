"""Unloads adapters that are retired or deleted from an operator's inference server, such as vLLM."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import httpx2
from django.conf import settings
from django.db import transaction

if TYPE_CHECKING:
    from dashboard.models.adapters.adapter import Adapter

logger = logging.getLogger(__name__)
TIMEOUT_SECONDS = 5.0


def unload_on_commit(adapters: Iterable[Adapter]) -> None:
    """Let the server free the adapters' memory after this transaction; no page waits for it."""
    folders = [adapter.folder for adapter in adapters if adapter.base_model.has_operator_server]
    if folders:
        thread = threading.Thread(target=unload, args=(folders,), daemon=True)
        transaction.on_commit(thread.start, robust=True)


def unload(folders: Sequence[str]) -> None:
    """Send one request per adapter, until the server is away; a failure costs memory there and is logged."""
    server = settings.INFERENCE_SERVER
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    with httpx2.Client(headers=headers, timeout=TIMEOUT_SECONDS) as client:
        for folder in folders:
            try:
                response = client.post(
                    f"{server.url.rstrip('/')}/unload_lora_adapter", json={"lora_name": folder}
                )
            except httpx2.HTTPError as error:
                logger.warning("The inference server %s unloads no adapter: %r", server.host, error)
                return
            # 400, 404: it had not loaded this adapter.
            if response.status_code not in (200, 400, 404):
                logger.warning(
                    "The inference server %s unloads no adapter: %d", server.host, response.status_code
                )
