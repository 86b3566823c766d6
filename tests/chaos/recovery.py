"""Recovery times of single faults: `python -m tests.chaos --recoveries 24 --elsewhere 4 --stops 20`.

`--recoveries` kills, in turn, the worker, the pool process that supervises and the engine of a training, and
measures the time until the same training takes steps again. `--elsewhere` kills a whole host: a container
with its own PID namespace holds the training, and a node outside takes it over when the lease has expired.
`--stops` measures when the engine learns of a stop, and when its processes are gone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import psutil
from django.conf import settings
from django.db import connection

from dashboard.models import Job, JobEvent, WorkerNode
from tests import containers
from tests.chaos.run import create_token, describe, make_dataset
from tests.chaos.silence import p95
from tests.chaos.target import ServerBroker, Target
from tests.chaos.workload import retry_on_outage
from tests.e2e.installation import Api
from tests.proxy import Proxy

ROLES = ("worker", "pool", "trainer")
# Less than one kill of a worker per minute: `manage.py start` restarts programs that end more often with a
# growing delay.
REST_SECONDS = 15.0
MAX_ATTEMPTS = 7  # of the ten that a job has
SAME_HOST = "all killed to training again on the same host"
OTHER_HOST = "host killed to training again on another one"
STOP_SEEN, STOPPED = "stop requested to seen by the engine", "stop requested to no process left"
GOALS = {SAME_HOST: 20.0, OTHER_HOST: 150.0, STOP_SEEN: 2.0, STOPPED: 15.0}  # p95, seconds
TIMEOUT_SECONDS = 300.0
PHASES = ("interrupt", "requeue", "claim", "progress")


def run(
    options: argparse.Namespace, folder: Path, broker: ServerBroker | None, proxies: dict[str, Proxy]
) -> int:
    """Measure and return the exit status: 0 if every p95 meets its goal."""
    assert containers.are_available() or not options.elsewhere, (
        "--elsewhere needs the right to make PID namespaces"
    )
    target = Target(folder, broker, proxies)
    times: dict[str, list[float]] = defaultdict(list)
    try:
        trainings = LongTraining(Api(target.installation.url, create_token()))
        for number in range(options.recoveries):
            role = ROLES[number % len(ROLES)]
            time.sleep(REST_SECONDS)
            seconds = measure_recovery(target, trainings, role)
            times[f"{role} killed to training again on the same host"].append(seconds)
            times[SAME_HOST].append(seconds)
        for _number in range(options.elsewhere):
            times[OTHER_HOST].append(measure_host_recovery(target, trainings))
        for _number in range(options.stops):
            for name, seconds in measure_stop(trainings).items():
                times[name].append(seconds)
        target.stop()
    finally:
        target.kill_all()
    print(f"\n{connection.vendor}, {options.nodes} training nodes, load {os.getloadavg()}.")
    for name, seconds in times.items():
        print(describe(name, seconds))
    missed = [name for name, goal in GOALS.items() if name in times and p95(times[name]) > goal]
    print(f"Goals missed: {', '.join(missed) or 'none'}.")
    return int(bool(missed))


class LongTraining:
    """One long training at a time, submitted again when its attempts are used up."""

    def __init__(self, api: Api) -> None:
        self.api, self.dataset = api, make_dataset(api)
        self.job: Job | None = None

    def ensure_training(self) -> Job:
        """Return the job once its present attempt takes steps."""
        if self.job and self.job.attempt >= MAX_ATTEMPTS:
            self.end()
        if self.job is None:
            body = {
                "name": "Long",
                "dataset": self.dataset,
                "target_module_config": "efficient",
                "hyperparameters": {
                    "max_steps": 100_000,
                    "learning_rate": 2e-4,
                    "per_device_train_batch_size": 2,
                    "max_length": 64,
                },
            }
            self.api.post("/runs", body)
            self.job = retry_on_outage(lambda: Job.objects.filter(kind="train").latest("pk"))
        return self.wait_for_attempt(self.job.attempt or 1)

    def wait_for_attempt(self, attempt: int) -> Job:
        """Return the job once that attempt, or a later one, takes steps."""
        assert self.job is not None
        deadline, pk = time.monotonic() + TIMEOUT_SECONDS, self.job.pk
        while True:
            self.job = job = retry_on_outage(lambda: Job.objects.get(pk=pk))
            if job.attempt >= attempt and job.phase == "training" and job.state == "running":
                return job
            assert time.monotonic() < deadline, f"{job} is {job.state}, {job.phase}, attempt {job.attempt}"
            time.sleep(0.05)

    def end(self) -> None:
        """Cancel the job and wait for its end."""
        assert self.job is not None
        pk = self.job.pk
        retry_on_outage(lambda: Job.objects.get(pk=pk).request_cancel())
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not retry_on_outage(lambda: Job.objects.get(pk=pk).is_over):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        self.job = None


def measure_recovery(target: Target, trainings: LongTraining, role: str) -> float:
    """Kill the process of that role that the training depends on; return the seconds until it does again."""
    job = trainings.ensure_training()
    time.sleep(2.0)
    pool = psutil.Process(job.pid or 0)
    engine = psutil.Process(job.child_pid or 0)
    victim = {"worker": pool.parent(), "pool": pool, "trainer": engine}[role]
    assert victim is not None
    assert victim.pid in {process.pid for process in target.descendants()}
    return _measure_kill(victim, job, trainings, role)


def _measure_kill(victim: psutil.Process, job: Job, trainings: LongTraining, name: str) -> float:
    at = time.time()
    victim.kill()
    recovered = trainings.wait_for_attempt(job.attempt + 1)
    seconds = time.time() - at
    events = JobEvent.objects.filter(job=recovered, attempt__gte=job.attempt, event__in=PHASES).order_by(
        "seq"
    )
    phases = [(event.event, event.created_at.timestamp() - at) for event in events]
    timeline = ", ".join(f"{phase} {since:.1f}" for phase, since in phases if since > 0)
    print(f"{name}: {seconds:.1f} s ({timeline}) on {recovered.worker}", flush=True)
    return seconds


def measure_host_recovery(target: Target, trainings: LongTraining) -> float:
    """Let a container claim the training, kill the container, and wait for a node outside."""
    if trainings.job:
        trainings.end()
    nodes = WorkerNode.objects.filter(kind=WorkerNode.Kind.WORKER, queue="gpu")
    for node in nodes:
        node.pause(by="the experiment")
    with container(target.folder) as host:
        job = trainings.ensure_training()
        assert job.worker == "gpu9@far", job.worker
        for node in nodes:
            node.resume()
        seconds = _measure_kill(host, job, trainings, "host")
    WorkerNode.objects.filter(name="gpu9@far").delete()
    return seconds


def measure_stop(trainings: LongTraining) -> dict[str, float]:
    """Cancel a training; return the seconds until the engine sees it and until its processes are gone."""
    job = trainings.ensure_training()
    time.sleep(1.0)
    engine = psutil.Process(job.child_pid or 0)
    processes = [engine, *engine.children(recursive=True)]
    at = time.time()
    retry_on_outage(job.request_cancel)
    _ended, alive = psutil.wait_procs(processes, timeout=TIMEOUT_SECONDS)
    seconds = time.time() - at
    assert not alive
    seen = re.findall(r"stop requested \(cancel\) at (\S+) ---", job.log_tail())[-1]
    trainings.end()
    return {STOP_SEEN: datetime.fromisoformat(seen).timestamp() - at, STOPPED: seconds}


@contextlib.contextmanager
def container(folder: Path) -> Iterator[psutil.Process]:
    """Run a training node in its own PID namespace, where everything dies with the first process."""
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
