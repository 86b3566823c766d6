"""A broker that accepts connections and never answers: requests do not wait for it, and pages say so.

`tests/chaos/silence.py` sets the limit. Web server and dispatcher are real processes that reach the broker
only through a proxy.
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
from django.contrib.auth.hashers import make_password
from django.db.models.functions import Now
from django.test import Client
from redis import Redis

from dashboard.models import BaseModel, Dataset, Job, Outbox, User, WorkerNode
from tests.chaos.silence import find_slow_submits, p95
from tests.conftest import PASSWORD
from tests.e2e.installation import Answer, Api, send
from tests.proxy import Proxy
from tests.servers import free_port
from tests.workers.programs import running, wait_until

SILENT_SECONDS = 300
WARNING = b"The queue is unavailable at the moment"


@contextmanager
def running_web_server(redis_url: str) -> Iterator[str]:
    """Run a web server with that broker and yield its address."""
    port = free_port()
    serve = ("-m", "uvicorn", "dashboard.asgi:application", "--host", "127.0.0.1", "--port", str(port))
    with running(*serve, "--no-access-log", REDIS_URL=redis_url):
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_up(url), "the web server answers")
        yield url


def is_up(url: str) -> bool:
    try:
        return send(urllib.request.Request(f"{url}/sign-in/")).status == 200
    except OSError:
        return False


def get_home(url: str, session: str) -> Answer:
    name = settings.SESSION_COOKIE_NAME
    return send(urllib.request.Request(f"{url}/", headers={"Cookie": f"{name}={session}"}))


def sign_in(url: str, user: User) -> str:
    """Sign in through the form and return the session key."""
    cookies = CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))
    page = browser.open(f"{url}/sign-in/", timeout=60).read().decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
    assert token, page
    form = {"csrfmiddlewaretoken": token.group(1), "login": user.email, "password": PASSWORD}
    browser.open(f"{url}/sign-in/", data=urllib.parse.urlencode(form).encode(), timeout=60)
    return {cookie.name: cookie.value or "" for cookie in cookies}[settings.SESSION_COOKIE_NAME]


def is_outbox_empty() -> bool:
    return not Outbox.objects.filter(sent_at=None).exists()


@pytest.mark.proof
@pytest.mark.django_db(transaction=True)
def test_requests_do_not_wait_for_a_silent_broker(
    client: Client,
    mara: User,
    token: str,
    dataset: Dataset,
    base_model: BaseModel,
    broker: Redis,
    measured: Callable[[str], None],
) -> None:
    # The web server knows no fast hashes of tests.
    mara.password = make_password(PASSWORD, hasher="argon2")
    mara.save()
    client.force_login(mara)
    session = client.cookies[settings.SESSION_COOKIE_NAME].value
    upstream = settings.REDIS_URL.removeprefix("redis://").split("/")[0] or str(settings.BROKER_SOCKET)
    choices = {"dataset": dataset.pk, "base_model": base_model.pk, "target_module_config": "efficient"}
    submits, pages = [], []
    silent = WorkerNode.objects.exclude(broker_silent_since=None)
    with Proxy(upstream) as proxy:
        address = f"redis://127.0.0.1:{proxy.port}/0"
        with running("manage.py", "dispatch", REDIS_URL=address), running_web_server(address) as url:
            api = Api(url, token)
            wait_until(is_outbox_empty, "the first wake-ups are sent")
            assert WARNING not in get_home(url, session).body
            proxy.black_hole()
            began = time.monotonic()
            new_session = sign_in(url, mara)
            while time.monotonic() - began < SILENT_SECONDS:
                at = time.monotonic()
                api.post("/runs", {"name": f"silent {len(submits)}", **choices})
                submits.append(time.monotonic() - at)
                assert get_home(url, new_session).status == 200
                pages.append(time.monotonic() - at - submits[-1])
                time.sleep(1)
            wait_until(lambda: WARNING in get_home(url, new_session).body, "the page shows the warning")
            assert silent.filter(leads_until__gt=Now()).exists()
            assert Job.objects.filter(kind="train", state="queued").count() == len(submits)
            proxy.heal()
            wait_until(is_outbox_empty, "all wake-ups are sent")
            wait_until(lambda: not silent.exists(), "the dispatcher records that the broker is back")
            assert WARNING not in get_home(url, new_session).body
    numbers = f"submits p95 {p95(submits) * 1000:.0f} ms, pages p95 {p95(pages) * 1000:.0f} ms"
    measured(f"{len(submits)} submits beside a broker silent for {SILENT_SECONDS} s: {numbers}")
    assert not find_slow_submits(submits)
