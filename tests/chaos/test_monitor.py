"""The monitor finds stalled rows and orphaned processes; the injector reports missed targets."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dashboard.models import Job, State, TrainingRun, WorkerNode
from tests import servers
from tests.chaos import silence
from tests.chaos.monitor import STALLED_SECONDS, Monitor
from tests.chaos.storm import FaultInjector, InjectedFault, make_schedule
from tests.chaos.target import ServerBroker, Target
from tests.workers.conftest import claim


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """A target without an installation: its launcher is this process."""
    target = Target.__new__(Target)
    target.folder, target.broker, target.launcher, target.proxies = tmp_path, None, psutil.Process(), {}
    return target


@pytest.fixture
def orphan(target: Target) -> Iterator[int]:
    """A process whose parent has ended; only its environment names the data folder."""
    spawn = "import subprocess, sys\nprint(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
    environment = {**os.environ, "DATA_DIR": str(target.folder / "data")}
    parent = subprocess.run(
        [sys.executable, "-c", spawn], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    process = psutil.Process(int(parent.stdout))
    yield process.pid
    process.kill()


def age(monitor: Monitor, seconds: float) -> None:
    """Date what the monitor has observed back."""
    monitor.since = {item: began - seconds for item, began in monitor.since.items()}


def pause(role: str, ago: float, seconds: float, *held: tuple[int, int]) -> InjectedFault:
    return InjectedFault(time.time() - ago, role, os.getpid(), seconds, held)


def stalled_after(monitor: Monitor, seconds: float) -> list[str]:
    """Return the jobs that are stalled when they have not changed for so long."""
    monitor.observe()
    age(monitor, seconds)
    monitor.observe()
    return [line.split(":")[0] for line in monitor.stalled]


def test_orphaned_process_is_found(db: None, target: Target, orphan: int) -> None:
    monitor = Monitor(target)
    monitor.observe()
    assert not monitor.orphans
    age(monitor, 60)
    monitor.observe()
    assert list(monitor.orphans) == [orphan]


def test_unchanged_row_is_stalled_although_its_lease_is_renewed(run: TrainingRun, target: Target) -> None:
    job, monitor = claim("gpu"), Monitor(target)
    assert stalled_after(monitor, STALLED_SECONDS - 5) == []
    assert job.renew_lease()
    assert stalled_after(monitor, 10) == [f"job {job.pk}"]


def test_pause_of_the_holder_does_not_count(run: TrainingRun, target: Target) -> None:
    job = claim("gpu")
    monitor = Monitor(target, [pause("pool", 150, 60, (job.pk, job.attempt))])
    assert stalled_after(monitor, STALLED_SECONDS + 50) == []
    age(monitor, 20)
    monitor.observe()
    assert len(monitor.stalled) == 1


@pytest.mark.parametrize(
    ("role", "ago", "attempt"),
    [("pool", 125, 2), ("pool", 600, 1), ("worker", 125, 0), ("dispatcher", 125, 0)],
)
def test_earlier_or_unrelated_pause_excuses_nothing(
    run: TrainingRun, target: Target, role: str, ago: float, attempt: int
) -> None:
    job = claim("gpu")
    held = (job.pk, attempt) if attempt else (job.pk + 1, 1)
    monitor = Monitor(target, [pause(role, ago, 120, held)])
    assert stalled_after(monitor, STALLED_SECONDS + 5) == [f"job {job.pk}"]


def test_pause_of_the_dispatcher_excuses_a_row_without_a_holder(run: TrainingRun, target: Target) -> None:
    job = claim("gpu")
    ended = subprocess.Popen(["true"])
    ended.wait()
    Job.objects.filter(pk=job.pk).update(pid=ended.pid)
    monitor = Monitor(target, [pause("dispatcher", 125, 120)])
    assert stalled_after(monitor, STALLED_SECONDS + 5) == []


def test_changing_row_is_not_stalled(run: TrainingRun, target: Target) -> None:
    job, monitor = claim("gpu"), Monitor(target)
    for step in range(3):
        job.update_progress(step=step)
        monitor.observe()
        age(monitor, STALLED_SECONDS - 1)
    assert not monitor.stalled


def test_row_with_an_expired_back_off_is_stalled(run: TrainingRun, target: Target) -> None:
    Job.objects.filter(kind=Job.Kind.TRAIN).update(state=State.INTERRUPTED, run_after="2026-01-01T00:00Z")
    assert len(stalled_after(Monitor(target), STALLED_SECONDS + 1)) == 1


@pytest.mark.parametrize(("is_own_pool", "stalled"), [(True, 0), (False, 1)])
def test_node_with_a_paused_pool_is_not_idle(
    run: TrainingRun, target: Target, is_own_pool: bool, stalled: int
) -> None:
    WorkerNode.objects.register("gpu0@host", queue="gpu", host="host", pid=os.getppid() if is_own_pool else 1)
    monitor = Monitor(target, [pause("pool", 10, 1000)])
    assert len(stalled_after(monitor, STALLED_SECONDS + 1)) == stalled


@pytest.mark.skipif(bool(servers.find_missing_program()), reason="needs Debian's Valkey or Redis")
def test_broker_outlives_the_thread_that_restarted_it(tmp_path: Path) -> None:
    broker = ServerBroker(tmp_path / "broker", f"redis://127.0.0.1:{servers.free_port()}/0")
    try:
        thread = threading.Thread(target=broker.restart)
        thread.start()
        thread.join()
        time.sleep(0.5)
        assert broker.process.poll() is None
    finally:
        broker.close()


OPTIONS = argparse.Namespace(
    seed=1, jobs=40, kills=20, pauses=2, pause_seconds=1.0,
    outages=0, outage_seconds=0.0, silences=0, silence_seconds=0.0,
)  # fmt: skip


def test_faults_without_a_target_are_reported(target: Target) -> None:
    injector = FaultInjector(target, make_schedule(OPTIONS), lambda: 0)
    faults = [InjectedFault(0.0, fault.role, 1, fault.seconds, ()) for fault in injector.schedule]
    injector.injected = faults
    assert injector.missed_targets() == []
    injector.injected = [fault for fault in faults if fault.role != "web"]
    assert [line.split(":")[0] for line in injector.missed_targets()] == ["web"]
    injector.injected = faults[:17]
    assert "17 of 22 faults injected" in injector.missed_targets()


def test_schedule_depends_on_the_seed_alone() -> None:
    assert make_schedule(OPTIONS) == make_schedule(OPTIONS)


def test_slow_submits_in_a_silence_are_found() -> None:
    assert silence.find_slow_submits([]) == []
    assert silence.find_slow_submits([0.1] * 39 + [9.0]) == [], "one in forty may be slow"
    assert silence.find_slow_submits([0.1] * 18 + [9.0] * 2) != []
