"""`manage.py start` as people meet it: what it prints, what it mends, and every way to stop it.

These tests come last, because they end the installation that all browser tests share.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from django.conf import settings

from dashboard.management.commands.start import start_lock
from tests.e2e.installation import Installation, Person, launch, stop, until

pytestmark = pytest.mark.slow

# Print the id of a run that never ends by itself: a draft.
DRAFT_RUN = """
import django
django.setup()
from dashboard.models import BaseModel, Dataset, DatasetVersion, Project, TargetModuleConfig, TrainingRun
project = Project.objects.named("Support")
dataset = Dataset.objects.create(project=project, name="Tickets")
run = TrainingRun.objects.create(
    project=project,
    name="Draft",
    dataset_version=DatasetVersion.objects.create(project=project, dataset=dataset, version=1, size_bytes=0),
    base_model=BaseModel.objects.earliest("pk"),
    target_module_config=TargetModuleConfig.objects.earliest("pk"),
)
print(run.pk)
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


@contextmanager
def open_stream(installation: Installation, person: Person, run: int) -> Iterator[None]:
    """An event stream that has begun and stays open."""
    stored = json.loads(person.session.read_text())["cookies"]
    cookies = "; ".join(f"{one['name']}={one['value']}" for one in stored)
    connection = http.client.HTTPConnection(installation.url.removeprefix("http://"), timeout=30)
    connection.request("GET", f"/runs/{run}/stream/", headers={"Cookie": cookies})
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline().startswith(b"retry:")
    yield
    response.close()
    connection.close()


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
    web = [one for one in processes_of(installation) if "uvicorn" in " ".join(one.cmdline())]
    assert web
    assert not [region.path for one in web for region in one.memory_maps() if "torch" in region.path]


def test_a_killed_broker_comes_back(installation: Installation) -> None:
    next(one for one in processes_of(installation) if "valkey" in one.name()).kill()
    until(lambda: "broker ended with code -9, restarting" in installation.log.read_text(), "the restart")
    until(lambda: any("valkey" in one.name() for one in processes_of(installation)), "the new broker")


def test_sigterm_stops_all_of_it_with_a_stream_open(
    installation: Installation, mara: Person, measured: Callable[[str], None]
) -> None:
    made = run_python(installation, "-c", DRAFT_RUN)
    assert made.returncode == 0, made.stderr
    with open_stream(installation, mara, int(made.stdout)):
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
