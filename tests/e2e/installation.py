"""A running installation as its users meet it: an address, a log, a command line, an API.

Knows nothing of pytest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings
from playwright.sync_api import Browser, Page, sync_playwright

from tests.servers import free_port

READY_SECONDS = 180
STOP_SECONDS = 60
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Points of the first curve on a run's page.
POINTS = """() => {
  const canvas = document.querySelector("#loss-chart canvas");
  return canvas ? Chart.getChart(canvas).data.datasets[0].data.length : 0;
}"""
# The step of its last point: a long curve is thinned, so that it has fewer points than before.
LAST_STEP = """() => {
  const canvas = document.querySelector("#loss-chart canvas");
  return canvas ? Chart.getChart(canvas).data.datasets[0].data.at(-1).x : 0;
}"""
OVER = ("succeeded", "failed", "cancelled", "stopped_early")


@dataclass(frozen=True)
class Person:
    """Somebody with an account; `session` is the file that keeps their browser's cookies."""

    email: str
    password: str
    session: Path


@dataclass(frozen=True)
class Installation:
    """A running `manage.py start` and its address."""

    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['PORT']}"

    @property
    def folder(self) -> Path:
        return self.log.parent

    @property
    def code(self) -> str:
        """The set-up code that the first visit asks for."""
        found = re.search(r"The set-up code for the first visit is (\S+)", self.log.read_text())
        assert found, self.log_tail()
        return found.group(1)

    def log_tail(self, lines: int = 80) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def create_account(
        self, person: Person, *, project: str, role: str, superuser: bool = False, token: bool = False
    ) -> str:
        """Return the output of the command: a sentence, or the new token."""
        flags = [flag for flag, wanted in (("--superuser", superuser), ("--token", token)) if wanted]
        asked = ["--email", person.email, "--project", project, "--role", role, *flags]
        said = subprocess.run(
            [sys.executable, "manage.py", "create_account", *asked],
            input=person.password,
            env=self.environment,
            cwd=settings.BASE_DIR,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert said.returncode == 0, said.stderr
        return said.stdout.strip()


def launch(environment: dict[str, str], log: Path) -> Installation:
    """Start it and wait until it says that it is ready."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "start"],
            cwd=settings.BASE_DIR,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    installation = Installation(process, environment, log)
    deadline = time.monotonic() + READY_SECONDS
    while "Graftworks is ready" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            raise AssertionError(f"It did not start.\n{installation.log_tail()}")
        time.sleep(0.2)
    return installation


@contextmanager
def run_installation(folder: Path, model: Path) -> Iterator[Installation]:
    """Run Graftworks as `make start` does, on a free port and with `model` as its bundled one."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PORT": str(free_port()),
        "DATA_DIR": str(folder / "data"),
        "BUNDLED_MODEL_DIR": str(model),
        "OMP_NUM_THREADS": "1",
        "WEB_CONCURRENCY": "2",
        # Where a test may listen for events.
        "WEBHOOK_HOSTS": f"127.0.0.1:{free_port()}",
        # All tests share one token.
        "API_READS_PER_MINUTE": "100000",
        "API_WRITES_PER_MINUTE": "100000",
    }
    running = launch(environment, folder / "start.log")
    try:
        yield running
    finally:
        if running.process.poll() is None:
            stop(running)


def stop(running: Installation) -> None:
    """End it with SIGTERM, and all its processes with it."""
    family = psutil.Process(running.process.pid).children(recursive=True)
    running.process.send_signal(signal.SIGTERM)
    try:
        status = running.process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(running.process.pid, signal.SIGKILL)
        raise
    assert status == 0, running.log_tail()
    _gone, left = psutil.wait_procs(family, timeout=30)
    assert not left, left


@contextmanager
def run_chromium() -> Iterator[Browser]:
    """Run Chromium from PATH or from CHROMIUM. Raises RuntimeError without one."""
    names = [os.environ.get("CHROMIUM"), *BROWSERS]
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path is None:
        raise RuntimeError(
            "There is no Chromium on PATH, and CHROMIUM does not name one. On Debian: apt install chromium"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER_FLAGS)
        yield browser
        browser.close()


def until(holds: Callable[[], bool], what: str, seconds: float = 180) -> None:
    """Wait for it. Playwright's own waiting evaluates text in the page, which the page's policy forbids."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


def points_of(page: Page) -> int:
    """Return the number of points of the first curve of a run's page."""
    return int(page.evaluate(POINTS))


def sign_in(page: Page, person: Person) -> None:
    """Through the form, as everybody does."""
    page.goto("/sign-in/")
    page.get_by_label(re.compile("mail")).fill(person.email)
    page.get_by_label("Password", exact=True).fill(person.password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/")


@dataclass(frozen=True)
class Answer:
    """An answer of the server."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Unredirected(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer to look at."""

    def redirect_request(self, *_arguments: Any) -> None:
        return None


OPENER = urllib.request.build_opener(Unredirected)


@dataclass(frozen=True)
class Api:
    """Calls below /api/v1 with a token."""

    url: str
    token: str

    def call(
        self,
        method: str,
        path: str,
        payload: Any = None,
        *,
        body: bytes | None = None,
        kind: str = "application/json",
        **headers: str,
    ) -> Answer:
        """One request, its answer whatever the status."""
        data = json.dumps(payload).encode() if payload is not None else body
        request = urllib.request.Request(f"{self.url}/api/v1{path}", data=data, method=method)
        request.add_header("Authorization", f"Bearer {self.token}")
        if data is not None:
            request.add_header("Content-Type", kind)
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        return send(request)

    def get(self, path: str) -> Any:
        """The JSON of a call that must work."""
        answer = self.call("GET", path)
        assert answer.status == 200, (path, answer.status, answer.body)
        return answer.json()

    def post(self, path: str, payload: Any = None) -> Any:
        """The JSON of a call that starts something and must be accepted."""
        answer = self.call("POST", path, payload)
        assert answer.status == 202, (path, answer.status, answer.body)
        return answer.json()

    def upload(self, filename: str, content: bytes, **fields: str) -> Answer:
        """POST /datasets with a file."""
        boundary = "graftworks-test-boundary"
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in fields.items()
        ]
        head = f'Content-Disposition: form-data; name="file"; filename="{filename}"\r\n'
        parts += [f"--{boundary}\r\n{head}Content-Type: application/octet-stream\r\n\r\n".encode(), content]
        body = b"".join([*parts, f"\r\n--{boundary}--\r\n".encode()])
        return self.call("POST", "/datasets", body=body, kind=f"multipart/form-data; boundary={boundary}")

    def wait(self, path: str, states: tuple[str, ...] = OVER, seconds: float = 180) -> Any:
        """The object once its `state` is one of `states`."""
        deadline = time.monotonic() + seconds
        while (found := self.get(path))["state"] not in states:
            assert time.monotonic() < deadline, f"{path} is {found['state']} after {seconds} s"
            time.sleep(0.2)
        return found


def start_run(api: Api, dataset: int, name: str, **hyperparameters: float) -> int:
    """Return the id of a new run of few tokens."""
    asked = {
        "name": name,
        "dataset": dataset,
        "target_module_config": "efficient",
        "hyperparameters": {"max_length": 128, **hyperparameters},
    }
    return int(api.post("/runs", asked)["id"])


def send(request: urllib.request.Request) -> Answer:
    """The answer to a request; redirects and refusals are answers."""
    try:
        with OPENER.open(request, timeout=60) as response:
            return Answer(response.status, dict(response.headers), response.read())
    except urllib.error.HTTPError as refusal:
        return Answer(refusal.code, dict(refusal.headers), refusal.read())
