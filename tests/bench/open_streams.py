"""First tokens, and pages while 50 chats are streamed: `python -m tests.bench.open_streams`.

Runs an installation with the bundled model, and asks pages in turn without and with the streams. Each stream
that ends is opened again. Times are those of a client, so that other work on the machine counts as well.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import httpx2

from tests.bench.serving import MODEL
from tests.e2e.installation import Installation, Person, run_installation

STREAMS, PAGES, GOAL_MS = 50, 100, 300
CHATS, FIRST_GOAL_MS = 21, 500
ADDRESSES = ("/", "/runs/", "/playground/", "/queue/", "/adapters/", "/settings/tokens/")
READY_SECONDS = 300
PERSON = Person("bench@example.org", "a long password for it", Path())


class Load:
    """Chats that are streamed, and how many are open."""

    def __init__(self, url: str, token: str, model: str) -> None:
        limits = httpx2.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {token}"}
        self.client = httpx2.AsyncClient(base_url=url, headers=headers, timeout=300, limits=limits)
        self.model = model
        self.open, self.fewest = 0, STREAMS
        self.events: Counter[str] = Counter()

    async def stream(self, number: int) -> None:
        """Open one chat after the other."""
        while True:
            messages = [{"role": "user", "content": f"Write a long story about the number {number}."}]
            body = {"model": self.model, "messages": messages, "max_tokens": 400, "stream": True}
            async with self.client.stream("POST", "/v1/chat/completions", json=body) as answer:
                self.events[str(answer.status_code)] += 1
                if answer.status_code != 200:
                    await asyncio.sleep(1)
                    continue
                self.open += 1
                try:
                    async for _line in answer.aiter_lines():
                        self.events["lines"] += 1
                finally:
                    self.open -= 1

    async def first_token(self, number: int) -> float | None:
        """Return the milliseconds from sending a chat to the first text of its answer; None if refused."""
        text = (
            f"Letter {number}. A customer in Lyon waits for an invoice since Monday. Answer in two sentences."
        )
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "max_tokens": 4}
        began = time.monotonic()
        async with self.client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer:
            if answer.status_code == 503:
                return None
            async for line in answer.aiter_lines():
                if '"content": "' in line and '"content": ""' not in line:
                    return 1000 * (time.monotonic() - began)
        raise SystemExit("A chat ended without text.")

    async def wait_until_open(self, count: int) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while self.open < count:
            if time.monotonic() > deadline:
                raise SystemExit(f"Only {self.open} chats are open: {self.events}")
            await asyncio.sleep(0.1)


async def sign_in(url: str) -> httpx2.AsyncClient:
    """Return a client with a session."""
    client = httpx2.AsyncClient(base_url=url, timeout=60)
    form = (await client.get("/sign-in/")).text
    [token, *_] = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
    fields = {"login": PERSON.email, "password": PERSON.password, "csrfmiddlewaretoken": token}
    answer = await client.post("/sign-in/", data=fields, headers={"Referer": url})
    assert answer.status_code == 302, answer.text
    return client


async def ask(client: httpx2.AsyncClient, load: Load) -> list[float]:
    """Return the milliseconds of each page."""
    found = []
    for number in range(PAGES):
        began = time.monotonic()
        answer = await client.get(ADDRESSES[number % len(ADDRESSES)])
        found.append(1000 * (time.monotonic() - began))
        assert answer.status_code == 200, answer.url
        load.fewest = min(load.fewest, load.open)
        await asyncio.sleep(0.05)
    return found


def write(label: str, found: list[float]) -> None:
    """Print the median and the 95th percentile."""
    tail = statistics.quantiles(found, n=20)[-1]
    print(f"{label}: median {statistics.median(found):.0f} ms, p95 {tail:.0f} ms", flush=True)


async def measure(installation: Installation, token: str) -> None:
    async with aclosing(await sign_in(installation.url)) as client:
        api = {"Authorization": f"Bearer {token}"}
        while not (models := (await client.get("/v1/models", headers=api)).json()["data"]):
            await asyncio.sleep(0.5)
        load = Load(installation.url, token, models[0]["id"])
        await ask(client, load)  # warms templates and caches
        while await load.first_token(0) is None:  # the inference process starts
            await asyncio.sleep(1)
        found = [await load.first_token(number) for number in range(1, CHATS)]
        write(f"first token of a chat (goal: {FIRST_GOAL_MS} ms)", [taken or math.inf for taken in found])
        write("pages without streams", await ask(client, load))
        tasks = [asyncio.create_task(load.stream(number)) for number in range(STREAMS)]
        await load.wait_until_open(STREAMS)
        load.fewest = STREAMS
        before, began = load.events["lines"], time.monotonic()
        write(f"pages with {STREAMS} streams (goal: p95 {GOAL_MS} ms)", await ask(client, load))
        speed = (load.events["lines"] - before) / 2 / (time.monotonic() - began)
        load_average = os.getloadavg()[0]
        print(
            f"at least {load.fewest} streams open, {speed:.0f} tokens/s; load {load_average:.1f}", flush=True
        )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await load.client.aclose()


@contextmanager
def installation_with_model() -> Iterator[tuple[Installation, str]]:
    """Run an installation with the bundled model in a folder of its own; yield it and a manager's token."""
    if not MODEL.is_dir():
        raise SystemExit("The bundled base model is missing. Run `make start` once.")
    with tempfile.TemporaryDirectory(prefix="graftworks-bench-") as name:
        os.environ |= {"DJANGO_SETTINGS_MODULE": "dashboard.settings", "DATA_DIR": f"{name}/settings"}
        with run_installation(Path(name), MODEL) as installation:
            yield (
                installation,
                installation.create_account(PERSON, project="Bench", role="manager", token=True),
            )


def main() -> None:
    with installation_with_model() as (installation, token):
        asyncio.run(measure(installation, token))


if __name__ == "__main__":
    main()
