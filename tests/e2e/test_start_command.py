"""`manage.py start` for real: broker, web, dispatcher, workers, and every way people stop them."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

# A run that never ends by itself: a draft. Prints its id and the cookie of somebody who may watch it.
WATCHED_RUN = """
import django
django.setup()
from django.conf import settings
from django.test import Client
from dashboard.models import (
    BaseModel, Dataset, DatasetVersion, Project, Role, TargetModuleConfig, TrainingRun, User)
project = Project.objects.named("Support")
user = User.objects.create_user("mara@example.org", "correct-horse-battery")
project.admit(user, Role.MANAGER)
dataset = Dataset.objects.create(project=project, name="Tickets")
run = TrainingRun.objects.create(
    project=project,
    name="Draft",
    dataset_version=DatasetVersion.objects.create(project=project, dataset=dataset, version=1, size_bytes=0),
    base_model=BaseModel.objects.earliest("pk"),
    target_module_config=TargetModuleConfig.objects.earliest("pk"),
)
client = Client()
client.force_login(user)
print(run.pk, f"{settings.SESSION_COOKIE_NAME}={client.cookies[settings.SESSION_COOKIE_NAME].value}")
"""


class Installation:
    """One data folder, one port, and the `manage.py start` that runs on them."""

    def __init__(self, data_dir: Path, port: int) -> None:
        self.port = port
        self.log = data_dir.with_name("start.log")
        self.environment = {**os.environ, "DATA_DIR": str(data_dir), "PORT": str(port)}
        self.launcher: subprocess.Popen[bytes] | None = None
        self.family: list[psutil.Process] = []

    def launch(self) -> subprocess.Popen[bytes]:
        with self.log.open("w") as output:
            self.launcher = subprocess.Popen(
                [sys.executable, "manage.py", "start"],
                cwd=ROOT,
                env=self.environment,
                stdout=output,
                stderr=output,
            )
        return self.launcher

    def start(self, seconds: float = 60.0) -> float:
        """Seconds until the address is printed; remembers every process there is then."""
        began = time.monotonic()
        launcher = self.launch()
        while "is ready" not in self.output():
            assert launcher.poll() is None, self.output()
            assert time.monotonic() - began < seconds, self.output()
            time.sleep(0.1)
        self.family = psutil.Process(launcher.pid).children(recursive=True)
        return time.monotonic() - began

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> float:
        assert self.launcher is not None
        self.family = psutil.Process(self.launcher.pid).children(recursive=True)
        began = time.monotonic()
        self.launcher.terminate()
        assert self.launcher.wait(timeout=30) == 0, self.output()
        return time.monotonic() - began

    def left(self) -> list[psutil.Process]:
        return [member for member in self.family if member.is_running()]

    def page(self, path: str = "/") -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def run_code(self, code: str) -> str:
        environment = {**self.environment, "DJANGO_SETTINGS_MODULE": "dashboard.settings"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = Installation(tmp_path / "my data", port)
    yield made
    for member in made.left():
        member.kill()
    if made.launcher and made.launcher.poll() is None:
        made.launcher.kill()
        made.launcher.wait()


@contextmanager
def open_stream(installation: Installation) -> Iterator[None]:
    """An event stream that has begun and stays open."""
    run, cookie = installation.run_code(WATCHED_RUN).split()
    connection = http.client.HTTPConnection("127.0.0.1", installation.port, timeout=10)
    connection.request("GET", f"/runs/{run}/stream/", headers={"Cookie": cookie})
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline().startswith(b"retry:")
    yield
    response.close()
    connection.close()


def test_the_first_start_prints_one_address_and_a_code(installation: Installation) -> None:
    installation.start()
    output = installation.output()
    assert re.findall(r"http://\S+/$", output, re.M) == [f"http://127.0.0.1:{installation.port}/"]
    assert re.search(r"The set-up code for the first visit is (\w{4}-){3}\w{4}$", output, re.M)
    assert "set-up" in installation.page().lower()
    installation.stop()


def test_sigterm_stops_all_of_it_within_ten_seconds_with_a_stream_open(installation: Installation) -> None:
    installation.start()
    wait_until_idle(installation)
    with open_stream(installation):
        assert installation.stop() < 10
    assert len(installation.family) >= 7
    assert installation.left() == []


def test_a_second_start_shows_the_first_page_within_ten_seconds(installation: Installation) -> None:
    installation.start()
    installation.stop()
    assert installation.start() < 10
    assert installation.page()
    installation.stop()


def test_a_killed_start_leaves_no_process_and_no_lock(installation: Installation) -> None:
    installation.start()
    assert installation.launcher is not None
    installation.family = psutil.Process(installation.launcher.pid).children(recursive=True)
    installation.launcher.kill()
    installation.launcher.wait()
    psutil.wait_procs(installation.family, timeout=10)
    assert installation.left() == []
    installation.start()
    installation.stop()


def test_a_killed_broker_comes_back(installation: Installation) -> None:
    installation.start()
    broker = next(member for member in installation.family if "valkey" in member.name())
    broker.kill()
    deadline = time.monotonic() + 10
    while "broker ended with code -9, restarting" not in installation.output():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(2)
    assert any("valkey" in member.name() for member in children(installation))
    installation.stop()
    assert installation.left() == []


def test_a_port_in_use_is_one_sentence_and_starts_nothing(installation: Installation) -> None:
    with socket.create_server(("127.0.0.1", installation.port)):
        assert installation.launch().wait(timeout=30) == 1
    lines = installation.output().strip().splitlines()
    assert len(lines) == 1
    assert f"Port {installation.port} on 127.0.0.1 is in use" in lines[0]


def test_the_web_process_has_no_torch_mapped(installation: Installation) -> None:
    installation.start()
    web = next(member for member in installation.family if "uvicorn" in member.cmdline())
    installation.page()
    assert not [region.path for region in web.memory_maps() if "torch" in region.path]
    installation.stop()


def children(installation: Installation) -> list[psutil.Process]:
    assert installation.launcher is not None
    return psutil.Process(installation.launcher.pid).children(recursive=True)


def wait_until_idle(installation: Installation) -> None:
    """The first start inspects the bundled base model, and a running job may take its time to stop."""
    deadline = time.monotonic() + 120
    while not re.search(r"Inspect \d+: (succeeded|failed)", installation.output()):
        assert time.monotonic() < deadline, installation.output()
        time.sleep(0.5)
