"""Sends the events of webhooks. The dispatcher calls it in a loop of its own.

An address comes from a manager and its host from the operator's list, which is checked again before each try.
"""

from __future__ import annotations

import asyncio
import time

import httpx2

from dashboard.models import WebhookDelivery

# For the whole try: a receiver that sends one byte at a time must not hold up the others.
SECONDS = 5.0


def deliver_webhooks() -> None:
    """Try each due delivery once, one per webhook."""
    for delivery in WebhookDelivery.objects.due():
        if not delivery.webhook.is_allowed:
            delivery.record(arrived=False, result="The host is not in WEBHOOK_HOSTS any more.")
            continue
        status = asyncio.run(send(delivery))
        arrived = status is not None and 200 <= status < 300
        delivery.record(arrived=arrived, result="No answer" if status is None else f"Status {status}")


async def send(delivery: WebhookDelivery) -> int | None:
    """Return the status of the receiver's answer, whose body is not read; None without an answer."""
    url, body = delivery.webhook.url, delivery.body()
    headers = delivery.webhook.signed_headers(delivery.event_id, int(time.time()), body)
    # A redirect could lead to a host that is not allowed. Plain http is for this machine, without a proxy.
    client = httpx2.AsyncClient(
        follow_redirects=False, trust_env=url.startswith("https:"), timeout=SECONDS, verify=True
    )
    try:
        async with (
            asyncio.timeout(SECONDS),
            client,
            client.stream("POST", url, content=body, headers=headers) as answer,
        ):
            return answer.status_code
    except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, OSError):
        return None
