"""`manage.py start` as people meet it: what it prints, what it mends, and every way to stop it.

These tests come last, because they end the installation that all browser tests share.
"""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from django.conf import settings

from dashboard.management.commands.start import start_lock
from tests.e2e.installation import Installation, launch, stop, until

pytestmark = pytest.mark.slow

# Print the id of a run that never ends by itself, a draft, and the cookie of somebody who may watch it.
WATCHED_RUN = """
import django
django.setup()
from django.conf import settings
from django.test import Client
from dashboard.models import (
    BaseModel, Dataset, DatasetVersion, Project, Role, TargetModuleConfig, TrainingRun, User)
project = Project.objects.named("Support")
number = User.objects.count()
user = User.objects.create_user(f"reader-{number}@example.org", "correct-horse-battery")
project.admit(user, Role.VIEWER)
dataset = Dataset.objects.create(project=project, name=f"Tickets {number}")
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
SIGN_OUT = """
import sys
import django
django.setup()
from django.contrib.sessions.models import Session
print(Session.objects.filter(pk=sys.argv[1].partition("=")[2]).delete()[0])
"""


def run_python(installation: Installation, *arguments: str, **names: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the environment of the installation, changed by `names`."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=settings.BASE_DIR,
        env={**installation.environment, "DJANGO_SETTINGS_MODULE": "dashboard.settings", **names},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def processes_of(installation: Installation) -> list[psutil.Process]:
    return psutil.Process(installation.process.pid).children(recursive=True)


@dataclass(frozen=True)
class Watched:
    """A run and the cookie of somebody who watches it."""

    installation: Installation
    run: int
    cookie: str

    def follow(self, streams: ExitStack) -> http.client.HTTPResponse:
        """Open an event stream, and return its answer when it has begun."""
        address = self.installation.url.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=60)
        streams.callback(connection.close)
        connection.request("GET", f"/runs/{self.run}/stream/", headers={"Cookie": self.cookie})
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.readline().startswith(b"retry:")
        return answer


@pytest.fixture
def watched(installation: Installation) -> Watched:
    """A run that never ends by itself."""
    made = run_python(installation, "-c", WATCHED_RUN)
    assert made.returncode == 0, made.stderr
    run, cookie = made.stdout.split()
    return Watched(installation, int(run), cookie)


def web_processes(installation: Installation) -> list[psutil.Process]:
    found = [one for one in processes_of(installation) if one.name().startswith("gw-web")]
    assert len(found) == 2
    return found


def test_a_port_in_use_is_one_sentence_and_starts_nothing(installation: Installation, tmp_path: Path) -> None:
    done = run_python(installation, "manage.py", "start", DATA_DIR=str(tmp_path / "my data"))
    assert done.returncode == 1
    lines = (done.stdout + done.stderr).strip().splitlines()
    assert len(lines) == 1
    assert f"Port {installation.environment['PORT']} on 127.0.0.1 is in use" in lines[0]


def test_the_start_prints_one_address_and_a_code(installation: Installation) -> None:
    output = installation.log.read_text()
    assert re.findall(r"http://\S+/$", output, re.M) == [f"{installation.url}/"]
    assert len(re.findall(r"The set-up code for the first visit is (\w{4}-){3}\w{4}$", output, re.M)) == 1


def test_the_web_process_has_no_torch_mapped(installation: Installation) -> None:
    web = web_processes(installation)
    assert not [region.path for one in web for region in one.memory_maps() if "torch" in region.path]


def test_a_killed_broker_comes_back(installation: Installation) -> None:
    next(one for one in processes_of(installation) if "valkey" in one.name()).kill()
    until(lambda: "broker ended with code -9, restarting" in installation.log.read_text(), "the restart")
    until(lambda: any("valkey" in one.name() for one in processes_of(installation)), "the new broker")


def test_streams_of_both_web_processes_end_with_the_session(
    installation: Installation, watched: Watched
) -> None:
    both = web_processes(installation)

    def is_followed(web: psutil.Process) -> bool:
        return any(one.status == psutil.CONN_ESTABLISHED for one in web.net_connections())

    with ExitStack() as streams:
        answers = [watched.follow(streams)]
        # A process of the two may accept several connections in a row.
        while not all(is_followed(web) for web in both):
            answers.append(watched.follow(streams))
        assert run_python(installation, "-c", SIGN_OUT, watched.cookie).stdout.strip() == "1"
        for answer in answers:
            answer.read()


def test_sigterm_stops_all_of_it_with_a_stream_open(
    installation: Installation, watched: Watched, measured: Callable[[str], None]
) -> None:
    with ExitStack() as streams:
        watched.follow(streams)
        assert len(processes_of(installation)) >= 7
        began = time.monotonic()
        stop(installation)
        measured(f"stopped with an open stream in {time.monotonic() - began:.1f} s")


def test_a_killed_start_leaves_no_process_and_no_lock(
    installation: Installation, measured: Callable[[str], None]
) -> None:
    began = time.monotonic()
    again = launch(installation.environment, installation.folder / "second.log")
    measured(f"second start in {time.monotonic() - began:.1f} s")
    family = processes_of(again)
    again.process.kill()
    again.process.wait()
    left = psutil.wait_procs(family, timeout=30)[1]
    for one in left:
        one.kill()
    assert family
    assert left == []
    with start_lock(Path(installation.environment["DATA_DIR"])):
        pass
