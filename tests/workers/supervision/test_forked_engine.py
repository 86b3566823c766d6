"""Engines forked from the product's own server, with the environment that a worker gives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.conf import settings

from dashboard.models import BaseModel, Dataset, Job, Project, State, User
from tests.conftest import make_run
from tests.workers.conftest import claim
from tests.workers.programs import wait_until
from workers.supervision import forked_engine
from workers.supervision.engine_process import environment, is_forkable
from workers.supervision.forked_engine import ForkingPopen, ForkServer, server
from workers.tasks import attempt

PROGRAM = "tests.workers.engine_surroundings"
CANARY = "canary-7341"
SECRETS = ("SECRET_KEY", "DATABASE_URL", "REDIS_URL", "EMAIL_URL", "HF_TOKEN", "JUDGE_API_KEY")


@pytest.fixture(scope="module")
def own_server() -> Iterator[ForkServer]:
    """The server that a worker with secrets in its environment starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SECRETS:
            patch.setenv(name, CANARY)
        running = server(environment(Job.Kind.TRAIN, Path("out")))
    assert running
    yield running
    running.close()
    forked_engine._servers.clear()


@pytest.fixture
def warm(own_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> ForkServer:
    """The server, which forks a program of these tests as well."""
    monkeypatch.setattr(forked_engine, "server", server)
    monkeypatch.setitem(forked_engine.FORKED, PROGRAM, PROGRAM)
    return own_server


def start(tmp_path: Path) -> subprocess.Popen[Any]:
    return ForkingPopen(
        [sys.executable, "-m", PROGRAM, "one", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=settings.BASE_DIR,
        env=environment(Job.Kind.TRAIN, tmp_path),
        start_new_session=True,
        umask=0o027,
    )


def finish(process: subprocess.Popen[Any]) -> dict[str, Any]:
    """Return what the program wrote, after its end."""
    found: dict[str, Any] = json.loads(process.communicate(timeout=60)[0])
    assert process.returncode == 7
    return found


def test_training_is_forked_from_a_server_with_one_thread(
    warm: ForkServer, real_base: BaseModel, real_dataset: Dataset, project: Project, ed: User
) -> None:
    run = make_run(project, real_dataset, real_base, by=ed, max_steps=2)
    assert run.job is not None
    attempt(claim("gpu"), lambda: False)
    run.job.refresh_from_db()
    assert (run.job.state, run.job.attempt) == (State.SUCCEEDED, 1)
    assert warm.is_ready
    assert os.listdir(f"/proc/{warm.process.pid}/task") == [str(warm.process.pid)]


def test_forked_engine_has_what_an_executed_one_has(
    warm: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked = finish(start(tmp_path))
    monkeypatch.setattr(forked_engine, "server", lambda _environment: None)
    executed = finish(start(tmp_path))
    assert (forked.pop("libraries"), executed.pop("libraries")) == (["peft", "torch"], [])
    assert CANARY not in forked.pop("first_environment") + executed.pop("first_environment")
    # The pipes have other numbers.
    assert forked.pop("files").keys() == executed.pop("files").keys()
    assert forked == executed
    assert forked["folders"] == [str(settings.BASE_DIR), str(tmp_path)]


def test_only_jobs_that_load_the_same_libraries_are_forked() -> None:
    assert is_forkable(Job(kind=Job.Kind.TRAIN))
    assert not is_forkable(Job(kind=Job.Kind.TRAIN, needs_4bit=True))
    assert not is_forkable(Job(kind=Job.Kind.INSPECT))


def test_killed_engine_has_its_exit_status(warm: ForkServer, tmp_path: Path) -> None:
    with start(tmp_path) as process:
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(timeout=10) == -signal.SIGKILL
    assert warm.process.poll() is None


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Servers without libraries, which start at once."""
    monkeypatch.setattr(forked_engine, "server", server)
    monkeypatch.setattr(forked_engine, "_servers", [])
    monkeypatch.setattr(forked_engine, "LIBRARIES", ("json",))
    monkeypatch.setitem(forked_engine.FORKED, PROGRAM, PROGRAM)
    yield
    for running in forked_engine._servers:
        running.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_engine_is_executed_while_the_server_does_not_answer(
    bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(forked_engine, "ANSWER_SECONDS", 1.0)
    first = server(environment(Job.Kind.TRAIN, tmp_path))
    assert first
    first.await_ready()
    first.process.send_signal(number)
    finish(start(tmp_path))
    wait_until(lambda: first.process.poll() is not None, "the server's end")
    finish(start(tmp_path))
    (second,) = forked_engine._servers
    assert (second is not first, second.is_ready) == (True, True)


def test_server_that_cannot_fork_is_not_started_again(
    bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forked_engine, "LIBRARIES", ("tests.workers.starts_a_thread",))
    finish(start(tmp_path))
    assert "the libraries have started threads" in capfd.readouterr().err
    (refused,) = forked_engine._servers
    finish(start(tmp_path))
    assert forked_engine._servers == [refused]
    assert refused.has_refused


def test_idle_server_ends(bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "ENGINE_PRELOAD_MINUTES", 0.5 / 60)
    running = server(environment(Job.Kind.TRAIN, tmp_path))
    assert running
    running.await_ready()
    wait_until(lambda: running.process.poll() == 0, "the server's end")


def test_zero_minutes_start_no_server(bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "ENGINE_PRELOAD_MINUTES", 0)
    assert server(environment(Job.Kind.TRAIN, tmp_path)) is None


OWNER = """
import subprocess, sys
import django
django.setup()
from workers.supervision import forked_engine
forked_engine.LIBRARIES = ("json",)
forked_engine.FORKED[sys.argv[1]] = sys.argv[1]
command = [sys.executable, "-m", sys.argv[1]]
engine = forked_engine.ForkingPopen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
print(engine.pid, forked_engine._servers[0].process.pid, flush=True)
engine.wait()
"""


def test_server_and_engine_end_with_their_owner() -> None:
    command = [sys.executable, "-c", OWNER, PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=settings.BASE_DIR) as owner:
        assert owner.stdout is not None
        try:
            family = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
            assert [process.ppid() for process in family] == [owner.pid, owner.pid]
        finally:
            # Otherwise a failed assertion would wait for the owner, which waits for its engine.
            owner.kill()
    _gone, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
