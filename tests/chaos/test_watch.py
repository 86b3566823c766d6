"""The storm's watchman and its ledger of blows are worth nothing unless they see what they look for."""

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
from tests.chaos.stage import ServerBroker, Stage
from tests.chaos.storm import Blow, Hit, Storm, schedule
from tests.chaos.watch import STUCK_SECONDS, Watch
from tests.workers.conftest import claim

SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """One that keeps nothing alive: the seen processes are those of this test."""
    stage = Stage.__new__(Stage)
    stage.folder, stage.broker, stage.launcher, stage.lines = tmp_path, None, psutil.Process(), {}
    return stage


@pytest.fixture
def orphan(stage: Stage) -> Iterator[int]:
    """A process of this data folder whose parent has ended; only its environment tells."""
    leave = (
        "import subprocess, sys\n"
        f"print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}], stdout=subprocess.DEVNULL).pid)"
    )
    environment = {**os.environ, "DATA_DIR": str(stage.folder / "data")}
    born = subprocess.run(
        [sys.executable, "-c", leave], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    process = psutil.Process(int(born.stdout))
    yield process.pid
    process.kill()


def age(watch: Watch, seconds: float) -> None:
    """What stands still has stood for so much longer."""
    watch.since = {what: began - seconds for what, began in watch.since.items()}


def pause(role: str, ago: float, seconds: float, *held: tuple[int, int]) -> Hit:
    """One that began so long ago. Of this process, which is no node."""
    return Hit(time.time() - ago, role, os.getpid(), seconds, held)


def test_it_sees_a_process_without_a_master(db: None, stage: Stage, orphan: int) -> None:
    assert [process.pid for process in stage.strays()] == [orphan]
    watch = Watch(stage)
    watch.look()
    assert not watch.strays
    age(watch, 60)
    watch.look()
    assert list(watch.strays) == [orphan]


def stuck_after(watch: Watch, seconds: float) -> list[str]:
    """The jobs that it calls stuck when they have stood for so long."""
    watch.look()
    age(watch, seconds)
    watch.look()
    return [line.split(":")[0] for line in watch.stuck]


def test_it_sees_a_row_at_work_that_does_not_move(run: TrainingRun, stage: Stage) -> None:
    job, watch = claim("gpu"), Watch(stage)
    assert stuck_after(watch, STUCK_SECONDS - 5) == []
    assert job.renew_lease()
    assert stuck_after(watch, 10) == [f"job {job.pk}"], "a lease that is renewed is no step"


def test_the_time_in_which_its_holder_was_paused_does_not_count(run: TrainingRun, stage: Stage) -> None:
    job = claim("gpu")
    watch = Watch(stage, [pause("pool", 150, 60, (job.pk, job.attempt))])
    assert stuck_after(watch, STUCK_SECONDS + 50) == []
    age(watch, 20)
    watch.look()
    assert len(watch.stuck) == 1, "a minute's pause excuses a minute"


def test_a_pause_before_a_row_stood_still_excuses_nothing(run: TrainingRun, stage: Stage) -> None:
    job = claim("gpu")
    watch = Watch(stage, [pause("trainer", 600, 120, (job.pk, job.attempt))])
    assert stuck_after(watch, STUCK_SECONDS + 5) == [f"job {job.pk}"]


@pytest.mark.parametrize(("role", "attempt"), [("pool", 2), ("worker", 0), ("dispatcher", 0)])
def test_a_pause_of_others_excuses_no_row_whose_holder_is_there(
    run: TrainingRun, stage: Stage, role: str, attempt: int
) -> None:
    job = claim("gpu")
    held = [(job.pk, attempt)] if attempt else [(job.pk + 1, 1)]
    watch = Watch(stage, [pause(role, 125, 120, *held)])
    assert stuck_after(watch, STUCK_SECONDS + 5) == [f"job {job.pk}"]


def test_what_only_the_dispatcher_moves_may_wait_for_it(run: TrainingRun, stage: Stage) -> None:
    job = claim("gpu")
    ended = subprocess.Popen(["true"])
    ended.wait()
    Job.objects.filter(pk=job.pk).update(pid=ended.pid)
    watch = Watch(stage, [pause("dispatcher", 125, 120)])
    assert stuck_after(watch, STUCK_SECONDS + 5) == []


def test_a_row_that_moves_is_not_stuck(run: TrainingRun, stage: Stage) -> None:
    job, watch = claim("gpu"), Watch(stage)
    for step in range(3):
        job.update_progress(step=step)
        watch.look()
        age(watch, STUCK_SECONDS - 1)
    assert not watch.stuck


def test_it_sees_a_row_that_waits_beside_an_idle_worker(run: TrainingRun, stage: Stage) -> None:
    Job.objects.filter(kind=Job.Kind.TRAIN).update(state=State.INTERRUPTED, run_after="2026-01-01T00:00Z")
    watch = Watch(stage)
    watch.look()
    age(watch, STUCK_SECONDS + 1)
    watch.look()
    assert any("interrupted after its back-off" in line for line in watch.stuck)


@pytest.mark.parametrize(("of_its_pool", "stands"), [(True, 0), (False, 1)])
def test_a_node_is_not_idle_while_its_pool_is_paused(
    run: TrainingRun, stage: Stage, of_its_pool: bool, stands: int
) -> None:
    WorkerNode.objects.register("gpu0@host", queue="gpu", host="host", pid=os.getppid() if of_its_pool else 1)
    watch = Watch(stage, [pause("pool", 10, 1000)])
    assert len(stuck_after(watch, STUCK_SECONDS + 1)) == stands


@pytest.mark.skipif(bool(servers.what_is_missing()), reason="needs Debian's Valkey or Redis")
def test_a_broker_outlives_the_thread_that_restarted_it(tmp_path: Path) -> None:
    broker = ServerBroker(tmp_path / "broker", f"redis://127.0.0.1:{servers.free_port()}/0")
    try:
        restarting = threading.Thread(target=broker.restart)
        restarting.start()
        restarting.join()
        time.sleep(0.5)
        assert broker.process.poll() is None
    finally:
        broker.close()


def asked(kills: int, pauses: int) -> argparse.Namespace:
    return argparse.Namespace(
        seed=1, kills=kills, pauses=pauses, pause_seconds=1.0, outages=0, outage_seconds=0.0,
        silences=0, silence_seconds=0.0,
    )  # fmt: skip


def hits(blows: list[Blow]) -> list[Hit]:
    return [Hit(0.0, blow.role, 1, blow.seconds, ()) for blow in blows]


def test_a_storm_that_strikes_nobody_is_no_proof(stage: Stage) -> None:
    storm = Storm(stage, schedule(asked(kills=20, pauses=2)), lambda: 1.0)
    storm.hits = hits(storm.blows)
    assert storm.shortfall() == []
    storm.hits = [hit for hit in storm.hits if hit.role != "web"]
    assert any("of web asked for, none struck" in line for line in storm.shortfall())
    storm.hits = hits(storm.blows)[:17]
    assert "17 of 22 blows struck" in storm.shortfall()


def test_the_same_seed_makes_the_same_storm() -> None:
    assert schedule(asked(9, 3)) == schedule(asked(9, 3))


def test_it_judges_how_long_submits_take_beside_a_silent_broker() -> None:
    assert silence.held_up([]) == [], "nothing to judge"
    assert silence.held_up([0.1] * 19 + [9.0], most=0.6) == [], "one in twenty may"
    assert silence.held_up([0.1] * 18 + [9.0] * 2, most=0.6) != []
