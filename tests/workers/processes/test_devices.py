"""An engine sees its node's device alone, and a cancel frees it. Needs no GPU."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest
from django.conf import settings

from dashboard.management.commands import start
from dashboard.models import Job, Project, State, User
from tests.servers import free_port
from tests.workers.conftest import claim, run_script
from workers.supervision import engine_process, stop_policy

NOTE = Path(settings.DATA_DIR) / "note-of-an-engine"


@pytest.fixture
def job(db: None, project: Project) -> Job:
    Job.objects.submit(Job.Kind.INSPECT, {}, project=project, by=None)
    return claim("cpu")


@pytest.mark.parametrize(("node", "device"), [("gpu0", "GPU-aaa"), ("gpu1", "GPU-bbb")])
def test_engine_sees_only_the_device_of_its_node(
    job: Job, monkeypatch: pytest.MonkeyPatch, node: str, device: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aaa,GPU-bbb")
    with start.listen("127.0.0.1", free_port()) as listener:
        programs = {program.name: program for program in start.program_list(listener, None)}
    assert "gpu2" not in programs
    # The worker has its program's environment, and hands its part of it to the engine.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", programs[node].environment["CUDA_VISIBLE_DEVICES"])
    run_script(f"open({str(NOTE)!r}, 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])\n", job, monkeypatch)
    assert NOTE.read_text() == device


def test_engine_counts_gpus_in_the_order_of_its_node(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    run_script(f"open({str(NOTE)!r}, 'w').write(os.environ['CUDA_DEVICE_ORDER'])\n", job, monkeypatch)
    assert NOTE.read_text() == "PCI_BUS_ID"


# An engine whose child ignores signals and would keep the device's memory.
FAMILY = f"""
if not os.fork():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    open({str(NOTE)!r}, "w").write(str(os.getpgrp()))
    time.sleep(300)
emit("Progress", phase="training", step=1, total=9)
"""


@pytest.mark.parametrize(
    ("way", "ending"),
    [
        ("obedient", "sys.stdin.readline()\n"),
        ("deaf", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(300)\n"),
    ],
)
def test_cancel_ends_the_whole_process_group(
    job: Job, monkeypatch: pytest.MonkeyPatch, ed: User, way: str, ending: str
) -> None:
    NOTE.unlink(missing_ok=True)
    monkeypatch.setitem(stop_policy.GRACE_SECONDS, "cancel", 1.0)
    monkeypatch.setattr(engine_process, "LAST_LINES_SECONDS", 1.0)
    look = Job.read_stop_request

    def cancel_once_it_works(self: Job) -> str | None:
        if NOTE.exists() and NOTE.read_text() and self.state != State.CANCELLING:
            Job.objects.get(pk=job.pk).request_cancel(ed)
        return look(self)

    monkeypatch.setattr(Job, "read_stop_request", cancel_once_it_works)
    began = time.monotonic()
    ended = run_script(FAMILY + ending, job, monkeypatch)
    assert ended.state == State.CANCELLED, way
    assert time.monotonic() - began < 30
    group = int(NOTE.read_text())
    assert members(group) == []


def members(group: int) -> list[int]:
    """Return the running processes of a group, after at most five seconds."""
    for _try in range(50):
        found = []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except (ProcessLookupError, psutil.Error):
                continue
        if not found:
            return []
        time.sleep(0.1)
    return found
