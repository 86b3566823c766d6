"""The way back, one blow at a time: `python -m tests.chaos --recoveries 24 --elsewhere 4`.

A training is let to work, then one of the processes that it depends on is killed: the worker, the process
in its pool that supervises, the engine. What is timed is the way from the kill to the same training taking
steps again, with its stations. `--elsewhere` kills a whole host, worker and all, which never comes back: a
container with a PID namespace of its own holds the training, and a node outside takes it over when the lease
has run out. `--stops` asks trainings to stop: when the engine is told, and when its processes are gone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import psutil
from django.conf import settings
from django.db import connection

from dashboard.models import Job, JobEvent, WorkerNode
from tests import containers
from tests.chaos.run import figures, make_dataset, token
from tests.chaos.stage import ServerBroker, Stage
from tests.chaos.work import patiently
from tests.e2e.installation import Api
from tests.proxy import Proxy

ROLES = ("worker", "pool", "trainer")
# Between blows, so that a worker is killed less than once a minute: `manage.py start` waits longer for one
# that ends more often. A job has ten attempts.
REST_SECONDS = 15.0
ATTEMPTS_USED = 7
KILLED = " killed to training again on the same host"
FOR_GOOD = "host killed to training again on another one"
SEEN, FREE = "asked to stop to told to the engine", "asked to stop to no process left"
GOAL_SECONDS = 20.0
GOALS = {FOR_GOOD: 150.0, SEEN: 2.0, FREE: 15.0}
PATIENCE_SECONDS = 300.0
STATIONS = ("interrupt", "requeue", "claim", "progress")


def run(asked: argparse.Namespace, folder: Path, broker: ServerBroker | None, lines: dict[str, Proxy]) -> int:
    """The exit status: 0 when the p95 of all kills on one host, and of each other way, keeps its goal."""
    assert containers.may_be_made() or not asked.elsewhere, (
        "--elsewhere needs the right to make PID namespaces"
    )
    stage = Stage(folder, broker, lines)
    try:
        trainings = Trainings(Api(stage.installation.url, token(stage)))
        took: dict[str, list[float]] = {}
        for number in range(asked.recoveries):
            role = ROLES[number % len(ROLES)]
            time.sleep(REST_SECONDS)
            took.setdefault(role + KILLED, []).append(recover(stage, trainings, role))
        for _number in range(asked.elsewhere):
            took.setdefault(FOR_GOOD, []).append(recover_elsewhere(stage, trainings))
        for _number in range(asked.stops):
            for name, one in stop(trainings).items():
                took.setdefault(name, []).append(one)
        stage.stop()
    finally:
        stage.kill_all()
    print(f"\n{connection.vendor}, {asked.nodes} training nodes, load {os.getloadavg()}.")
    for name, seconds in took.items():
        print(figures(name, seconds))
    here = [one for name, seconds in took.items() if name.endswith(KILLED) for one in seconds]
    if here:
        print(figures("all" + KILLED, here))
    missed = [name for name, most in GOALS.items() if took.get(name) and _p95(took[name]) > most]
    missed += [KILLED] if here and _p95(here) > GOAL_SECONDS else []
    print(f"Goals missed: {', '.join(missed) or 'none'}.")
    return int(bool(missed))


def _p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]


class Trainings:
    """One long training at a time, which works whenever it is asked for."""

    def __init__(self, api: Api) -> None:
        self.api, self.dataset = api, make_dataset(api)
        self.job: Job | None = None

    def working(self) -> Job:
        """The training, once its present attempt takes steps; a new one where the old is used up."""
        if self.job and self.job.attempt >= ATTEMPTS_USED:
            self.end()
        if self.job is None:
            body = {
                "name": "Long",
                "dataset": self.dataset,
                "target_module_config": "efficient",
                "hyperparameters": {"max_steps": 100_000, "per_device_train_batch_size": 2, "max_length": 64},
            }
            self.api.post("/runs", body)
            self.job = patiently(lambda: Job.objects.filter(kind="train").latest("pk"))
        return self.until_training(self.job.attempt or 1)

    def until_training(self, attempt: int) -> Job:
        """The row once that attempt, or a later one, takes steps."""
        assert self.job is not None
        deadline, pk = time.monotonic() + PATIENCE_SECONDS, self.job.pk
        while True:
            self.job = job = patiently(lambda: Job.objects.get(pk=pk))
            if job.attempt >= attempt and job.phase == "training" and job.state == "running":
                return job
            assert time.monotonic() < deadline, f"{job} is {job.state}, {job.phase}, attempt {job.attempt}"
            time.sleep(0.05)

    def end(self) -> None:
        """Stop it and forget it."""
        assert self.job is not None
        pk = self.job.pk
        patiently(lambda: Job.objects.get(pk=pk).request_cancel())
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not patiently(lambda: Job.objects.get(pk=pk).is_over):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        self.job = None


def recover(stage: Stage, trainings: Trainings, role: str) -> float:
    """Kill the process of that role that the training depends on; seconds until it trains again."""
    job = trainings.working()
    time.sleep(2.0)
    pool = psutil.Process(job.pid or 0)
    victim = {"worker": pool.parent, "pool": lambda: pool, "trainer": lambda: pool.children()[0]}[role]()
    assert victim is not None
    assert victim.pid in {process.pid for process in stage.family()}, "that is not ours to kill"
    at = time.time()
    victim.kill()
    again = trainings.until_training(job.attempt + 1)
    seconds = time.time() - at
    print(f"{role}: {seconds:.1f} s ({stations(again, job.attempt, at)}) on {again.worker}", flush=True)
    return seconds


def stations(job: Job, attempt: int, at: float) -> str:
    """When each step of the way was reached, in seconds after the kill."""
    found = []
    for event in JobEvent.objects.filter(job=job, attempt__gte=attempt).order_by("seq"):
        since = event.created_at.timestamp() - at
        if since > 0 and event.event in STATIONS:
            found.append(f"{event.event} {since:.1f}")
    return ", ".join(found)


def recover_elsewhere(stage: Stage, trainings: Trainings) -> float:
    """Let a container hold the training, kill it with all that runs in it, and wait for a node outside."""
    if trainings.job:
        trainings.end()
    ours = WorkerNode.objects.filter(kind=WorkerNode.Kind.WORKER, queue="gpu")
    for node in ours:
        node.pause(by="the storm")
    with container(stage.folder) as first:
        job = trainings.working()
        assert job.worker == "gpu9@far", job.worker
        for node in ours:
            node.resume()
        at = time.time()
        first.kill()
        again = trainings.until_training(job.attempt + 1)
    seconds = time.time() - at
    print(f"host: {seconds:.1f} s ({stations(again, job.attempt, at)}) on {again.worker}", flush=True)
    WorkerNode.objects.filter(name="gpu9@far").delete()
    return seconds


def stop(trainings: Trainings) -> dict[str, float]:
    """Ask a training to stop with nothing kept."""
    job = trainings.working()
    time.sleep(1.0)
    group = psutil.Process(job.child_pid or 0)
    family = [group, *group.children(recursive=True)]
    asked = time.time()
    patiently(job.request_cancel)
    _gone, alive = psutil.wait_procs(family, timeout=PATIENCE_SECONDS)
    free = time.time()
    assert not alive
    told = re.findall(r"asked to stop \(cancel\) at (\S+) ---", job.log_tail())[-1]
    trainings.end()
    return {SEEN: datetime.fromisoformat(told).timestamp() - asked, FREE: free - asked}


@contextlib.contextmanager
def container(folder: Path) -> Iterator[psutil.Process]:
    """A training node whose death is the death of everything in its PID namespace."""
    command = [sys.executable, "-m", "celery", "-A", "workers.celery", "worker", "-P", "prefork"]
    command += ["-c", "1", "-Q", "gpu", "-n", "gpu9@far", "--without-gossip", "--without-mingle"]
    with (folder / "container.log").open("ab") as log:
        process = subprocess.Popen(
            [*containers.COMMAND, *command],
            cwd=settings.BASE_DIR,
            env=dict(os.environ),
            stdout=log,
            stderr=log,
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()
