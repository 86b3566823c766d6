"""A broker that takes connections and never answers: nobody waits for it, and people are told.

`CHAOS_SILENT_SECONDS` sets for how long it is silent; `tests/chaos/silence.py` says what is judged. Web and
dispatcher are real processes and have no other way to the broker than the silent one.
"""

from __future__ import annotations

import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar

import pytest
from django.conf import settings
from django.db.models.functions import Now
from django.test import Client
from redis import Redis

from dashboard.models import BaseModel, Dataset, Job, Outbox, User, WorkerNode
from tests.chaos.silence import SECONDS, held_up, p95
from tests.conftest import PASSWORD
from tests.e2e.installation import Answer, Api, send
from tests.proxy import Proxy
from tests.servers import free_port
from tests.workers.programs import running, until

TOLD = b"The queue is unavailable at the moment"


@contextmanager
def web(redis_url: str) -> Iterator[str]:
    """The address of a real web server with that broker."""
    port = free_port()
    serve = ("-m", "uvicorn", "dashboard.asgi:application", "--host", "127.0.0.1", "--port", str(port))
    with running(*serve, "--no-access-log", REDIS_URL=redis_url):
        url = f"http://127.0.0.1:{port}"
        until(lambda: is_up(url), 60, "the web server answers")
        yield url


def is_up(url: str) -> bool:
    try:
        return send(urllib.request.Request(f"{url}/sign-in/")).status == 200
    except OSError:
        return False


def home(url: str, session: str) -> Answer:
    """The first page, as somebody who has signed in sees it."""
    name = settings.SESSION_COOKIE_NAME
    return send(urllib.request.Request(f"{url}/", headers={"Cookie": f"{name}={session}"}))


def sign_in(url: str, person: User) -> str:
    """Through the form, as browsers do; the session that begins with it."""
    cookies = CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))
    page = browser.open(f"{url}/sign-in/", timeout=60).read().decode()
    hidden = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
    assert hidden, page
    typed = {"csrfmiddlewaretoken": hidden.group(1), "login": person.email, "password": PASSWORD}
    browser.open(f"{url}/sign-in/", data=urllib.parse.urlencode(typed).encode(), timeout=60)
    return {cookie.name: cookie.value or "" for cookie in cookies}[settings.SESSION_COOKIE_NAME]


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
    session = client.cookies[settings.SESSION_COOKIE_NAME].value
    upstream = settings.REDIS_URL.removeprefix("redis://").split("/")[0] or str(settings.BROKER_SOCKET)
    chosen = {"dataset": dataset.pk, "base_model": base_model.pk, "target_module_config": "efficient"}
    with Proxy(upstream) as proxy:
        address = f"redis://127.0.0.1:{proxy.port}/0"
        with running("manage.py", "dispatch", REDIS_URL=address), web(address) as url:
            api = Api(url, token)
            until(lambda: not Outbox.objects.filter(sent_at=None).exists(), 60, "the first wake-ups are sent")
            assert TOLD not in home(url, session).body
            proxy.black_hole()
            silent = WorkerNode.objects.exclude(broker_silent_since=None)
            submits, pages, entered, began = [], [], "", time.monotonic()
            while time.monotonic() - began < SECONDS:
                asked = time.monotonic()
                api.post("/runs", {"name": f"silent {len(submits)}", **chosen})
                submits.append(time.monotonic() - asked)
                assert home(url, session).status == 200
                pages.append(time.monotonic() - asked - submits[-1])
                if not entered and time.monotonic() - began > SECONDS / 2:
                    entered = session = sign_in(url, mara)
                time.sleep(1)
            assert entered, "nobody signed in while it was silent"
            until(lambda: TOLD in home(url, entered).body, 60, "the page says so")
            assert silent.filter(leads_until__gt=Now()).exists()
            assert Job.objects.filter(kind="train", state="queued").count() == len(submits)
            proxy.heal()
            until(lambda: not Outbox.objects.filter(sent_at=None).exists(), 60, "all wake-ups are sent")
            until(lambda: not silent.exists(), 60, "the dispatcher notices that it is back")
            assert TOLD not in home(url, session).body
    words = ", ".join(
        f"{name} p95 {p95(took) * 1000:.0f} ms" for name, took in (("submits", submits), ("pages", pages))
    )
    measured(f"{len(submits)} submits beside a broker silent for {SECONDS:.0f} s: {words}")
    assert not held_up(submits)
