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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dashboard.management.commands.start import start_lock
from tests.e2e.installation import until
from tests.servers import free_port

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

    def __init__(self, data_dir: Path, model: Path) -> None:
        self.port = free_port()
        self.data_dir = data_dir
        self.log = data_dir.with_name("start.log")
        names = {"DATA_DIR": data_dir, "PORT": self.port, "BUNDLED_MODEL_DIR": model}
        self.environment = os.environ | {name: str(value) for name, value in names.items()}
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

    def start(self) -> float:
        """Return the seconds until the address was printed."""
        began = time.monotonic()
        launcher = self.launch()
        until(lambda: "is ready" in self.output() or launcher.poll() is not None, "the address")
        assert launcher.poll() is None, self.output()
        return time.monotonic() - began

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """Return all that run now, which are also remembered."""
        assert self.launcher is not None
        self.family = psutil.Process(self.launcher.pid).children(recursive=True)
        return self.family

    def process(self, name: str) -> psutil.Process:
        return next(member for member in self.processes() if name in " ".join(member.cmdline()))

    def left(self) -> list[psutil.Process]:
        return psutil.wait_procs(self.family, timeout=30)[1]

    def page(self, path: str = "/") -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
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


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Installation]:
    """An installation that is stopped and started again by these tests, in their order."""
    made = Installation(tmp_path_factory.mktemp("start") / "my data", tiny_folder)
    yield made
    for member in made.family:
        if member.is_running():
            member.kill()
    if made.launcher and made.launcher.poll() is None:
        made.launcher.kill()
        made.launcher.wait()


@contextmanager
def open_stream(installation: Installation) -> Iterator[None]:
    """An event stream that has begun and stays open."""
    run, cookie = installation.run_code(WATCHED_RUN).split()
    connection = http.client.HTTPConnection("127.0.0.1", installation.port, timeout=30)
    connection.request("GET", f"/runs/{run}/stream/", headers={"Cookie": cookie})
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline().startswith(b"retry:")
    yield
    response.close()
    connection.close()


def test_a_port_in_use_is_one_sentence_and_starts_nothing(installation: Installation) -> None:
    with socket.create_server(("127.0.0.1", installation.port)):
        assert installation.launch().wait(timeout=60) == 1
    lines = installation.output().strip().splitlines()
    assert len(lines) == 1
    assert f"Port {installation.port} on 127.0.0.1 is in use" in lines[0]


def test_the_first_start_prints_one_address_and_a_code(installation: Installation) -> None:
    installation.start()
    output = installation.output()
    assert re.findall(r"http://\S+/$", output, re.M) == [f"http://127.0.0.1:{installation.port}/"]
    assert re.search(r"The set-up code for the first visit is (\w{4}-){3}\w{4}$", output, re.M)
    assert "set-up" in installation.page().lower()


def test_the_web_process_has_no_torch_mapped(installation: Installation) -> None:
    web = installation.process("uvicorn")
    installation.page()
    assert not [region.path for region in web.memory_maps() if "torch" in region.path]


def test_a_killed_broker_comes_back(installation: Installation) -> None:
    broker = installation.process("valkey")
    broker.kill()
    until(lambda: "broker ended with code -9, restarting" in installation.output(), "the broker's restart")
    until(lambda: any("valkey" in member.name() for member in installation.processes()), "the new broker")


def test_sigterm_stops_all_of_it_with_a_stream_open(
    installation: Installation, measured: Callable[[str], None]
) -> None:
    # The first start inspects the bundled base model, and a running job may take its time to stop.
    until(lambda: bool(re.search(r"Inspect \d+: ", installation.output())), "the inspection")
    with open_stream(installation):
        assert len(installation.processes()) >= 7
        assert installation.launcher is not None
        began = time.monotonic()
        installation.launcher.terminate()
        assert installation.launcher.wait(timeout=60) == 0, installation.output()
        measured(f"stopped with an open stream in {time.monotonic() - began:.1f} s")
    assert installation.left() == []


def test_a_killed_start_leaves_no_process_and_no_lock(
    installation: Installation, measured: Callable[[str], None]
) -> None:
    measured(f"second start in {installation.start():.1f} s")
    assert installation.page()
    assert installation.processes()
    assert installation.launcher is not None
    installation.launcher.kill()
    installation.launcher.wait()
    assert installation.left() == []
    with start_lock(installation.data_dir):
        pass
