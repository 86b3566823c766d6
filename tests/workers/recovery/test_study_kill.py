"""A study whose worker is killed again and again comes to the numbers of one that nobody disturbed.

Real broker, dispatcher, worker and engine. Kills hit the engine, the process that supervises it, and the
whole worker, while learning rates are searched, arms train, and models are scored.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from django.test import Client
from redis import Redis

from dashboard.models import Adapter, Job, JobEvent, State, Study
from tests.workers.programs import WORKER, running, until
from tests.workers.recovery.test_study import arm, launch  # noqa: F401 - a fixture

# What is killed, one after the other, while a job of the kind is at work.
KILLS = (
    ("engine", Job.Kind.TRAIN),
    ("supervisor", Job.Kind.TRAIN),
    ("worker", Job.Kind.TRAIN),
    ("worker", Job.Kind.EVALUATE),
)
# What a clock or the memory of the machine tells, numbers of rows, and how often it was tried.
NOT_COMPARED = ("id", "runs", "run", "attempt", "seconds", "peak_memory_bytes", "ms_per_token")


@contextmanager
def working(**environment: str) -> Iterator[Popen[bytes]]:
    """A worker that takes trainings and evaluations."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with running("-m", *WORKER, PATH=path, **environment) as process:
        yield process


def is_over(study: Study) -> bool:
    return Study.objects.get(pk=study.pk).is_over


def at_work(study: Study, kind: Job.Kind, spared: set[int]) -> Job | None:
    """A job that has just learned something, or scores, and was not killed before."""
    for job in study.jobs().filter(kind=kind, state=State.RUNNING).exclude(pk__in=spared):
        if kind == Job.Kind.EVALUATE or job.may_have_checkpoint:
            return job
    return None


def wait_for_work(study: Study, kind: Job.Kind, spared: set[int]) -> Job:
    """Wait for such a job."""
    until(lambda: at_work(study, kind, spared) is not None, 400, f"a job to kill: {kind}", 0.01)
    return at_work(study, kind, spared) or study.jobs().filter(kind=kind).latest("started_at")


def run_through_kills(study: Study) -> None:
    """Kill what `KILLS` names, start a killed worker again, and wait for the study's end."""
    remaining, killed = list(KILLS), set[int]()
    while True:
        with working() as worker:
            while remaining:
                target, kind = remaining.pop(0)
                job = wait_for_work(study, kind, killed)
                killed.add(job.pk)
                pids = {"engine": job.child_pid, "supervisor": job.pid, "worker": worker.pid}
                os.kill(pids[target] or 0, signal.SIGKILL)
                if target == "worker":
                    break
            else:
                until(lambda: is_over(study), 400, "the study's end")
                return


def without(value: Any) -> Any:
    """The same without what may differ."""
    if isinstance(value, dict):
        return {name: without(item) for name, item in value.items() if name not in NOT_COMPARED}
    return [without(item) for item in value] if isinstance(value, list) else value


def numbers(client: Client, study: Study) -> tuple[Any, Any, dict[tuple[str, int], str]]:
    """The study, its export, and the weights of every adapter."""
    shown, export = (client.get(f"/api/v1/studies/{study.pk}{path}") for path in ("", "/export"))
    assert (shown.status_code, export.status_code) == (200, 200)
    adapters = Adapter.objects.filter(run__study_arm__study=study).select_related("run__study_arm")
    weights = {(str(one.run.study_arm), one.run.seed): one.sha256 for one in adapters}
    return without(shown.json()), without(export.json()), weights


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_killing_the_worker_in_the_middle_of_a_study_changes_no_number_in_it(
    broker: Redis,
    launch: Callable[..., Study],  # noqa: F811
    token: str,
) -> None:
    plan: dict[str, Any] = {
        "arms": [arm("efficient", max_steps=6), arm("quality", max_steps=6)],
        "seeds": [1, 2],
        "learning_rates": [1e-3, 1e-2],
    }
    client = Client(headers={"Authorization": f"Bearer {token}"})
    with running("manage.py", "dispatch"):
        calm = launch(**plan)
        with working():
            until(lambda: is_over(calm), 400, "the undisturbed study")
        stormy = launch(**plan)
        run_through_kills(stormy)
    killed = JobEvent.objects.filter(job__in=stormy.jobs(), to_state=State.INTERRUPTED).count()
    assert killed == len(KILLS)
    assert set(stormy.jobs().values_list("state", flat=True)) == {State.SUCCEEDED}
    assert (
        Job.objects.filter(pk__in=calm.jobs(), attempt=1).count()
        == calm.jobs().count()
        == stormy.jobs().count()
    )
    expected, found = numbers(client, calm), numbers(client, stormy)
    assert expected[0]["state"] == "succeeded"
    assert len(expected[1]["scores"]) == 5 * 4, "the base and four adapters on every test row"
    assert found == expected
