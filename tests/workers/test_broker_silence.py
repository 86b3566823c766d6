"""A broker that takes connections and never answers: nobody waits for it, and people are told.

`CHAOS_SILENT_SECONDS` sets for how long it is silent.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import pytest
from django.conf import settings
from django.db.models.functions import Now
from django.test import Client
from redis import Redis

from dashboard.models import BaseModel, Dataset, Job, Outbox, User, WorkerNode
from tests.proxy import Proxy
from tests.workers.programs import running, until

SECONDS = float(os.environ.get("CHAOS_SILENT_SECONDS", "10"))
TOLD = b"The queue is unavailable at the moment"


def submit(client: Client, token: str, dataset: Dataset, base: BaseModel, key: str) -> float:
    """How long it took to start a run over the API."""
    chosen = {"dataset": dataset.pk, "base_model": base.pk, "target_module_config": "efficient"}
    asked = {"name": key, **chosen}
    began = time.monotonic()
    answer = client.post(
        "/api/v1/runs",
        asked,
        content_type="application/json",
        headers={"Authorization": f"Bearer {token}", "Idempotency-Key": key},
    )
    assert answer.status_code == 202, answer.content
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_silent_broker_holds_up_nobody_and_is_told(
    client: Client,
    mara: User,
    token: str,
    dataset: Dataset,
    base_model: BaseModel,
    broker: Redis,
    measured: Callable[[str], None],
) -> None:
    client.force_login(mara)
    upstream = settings.REDIS_URL.removeprefix("redis://").split("/")[0] or str(settings.BROKER_SOCKET)
    with Proxy(upstream) as proxy:
        address = f"redis://127.0.0.1:{proxy.port}/0"
        with running("manage.py", "dispatch", REDIS_URL=address):
            until(lambda: not Outbox.objects.filter(sent_at=None).exists(), 60, "the first wake-ups are sent")
            proxy.black_hole()
            began, took = time.monotonic(), []
            while time.monotonic() - began < SECONDS:
                took.append(submit(client, token, dataset, base_model, f"silent {len(took)}"))
                time.sleep(1)
            silent = WorkerNode.objects.exclude(broker_silent_since=None)
            until(lambda: TOLD in client.get("/").content, 60, "the page says so")
            assert silent.filter(leads_until__gt=Now()).exists()
            assert Job.objects.filter(kind="train", state="queued").count() == len(took)
            proxy.heal()
            until(lambda: not Outbox.objects.filter(sent_at=None).exists(), 60, "all wake-ups are sent")
            until(lambda: not silent.exists(), 60, "the dispatcher notices that it is back")
            assert TOLD not in client.get("/").content
    p95 = statistics.quantiles(took, n=20, method="inclusive")[-1]
    measured(f"{len(took)} submits beside a broker silent for {SECONDS:.0f} s: p95 {p95 * 1000:.0f} ms")
