"""A study whose processes are killed again and again ends with the numbers of an undisturbed one.

Broker, dispatcher, worker and engine are real. Kills hit the engine, its supervisor and the whole worker.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from redis import Redis

from dashboard.models import Adapter, Job, JobEvent, State, Study
from tests.workers.programs import running, running_worker, wait_until
from tests.workers.recovery.test_study import arm, launch  # noqa: F401 - a fixture

Kill = tuple[str, Job.Kind]  # what is killed, and the kind of job that it works on
KILLS: tuple[Kill, ...] = (
    ("engine", Job.Kind.TRAIN),
    ("supervisor", Job.Kind.TRAIN),
    ("worker", Job.Kind.TRAIN),
    ("worker", Job.Kind.EVALUATE),
)
# Row numbers, counts of attempts, and what depends on the clock or the machine's memory.
NOT_COMPARED = ("id", "runs", "run", "attempt", "seconds", "peak_memory_bytes", "ms_per_token")


def is_over(study: Study) -> bool:
    return Study.objects.get(pk=study.pk).is_over


def find_victim(study: Study, kind: Job.Kind, spared: set[int]) -> Job | None:
    """Return a job that has a checkpoint or evaluates, and was not hit before."""
    for job in study.jobs().filter(kind=kind, state=State.RUNNING).exclude(pk__in=spared):
        if kind == Job.Kind.EVALUATE or job.may_have_checkpoint:
            return job
    return None


def run_through_kills(study: Study) -> None:
    """Inject the kills one after another, restart a killed worker, and wait for the study's end."""
    remaining, hit = list(KILLS), set[int]()
    victims: list[Job] = []

    def has_victim() -> bool:
        if victim := find_victim(study, remaining[0][1], hit):
            victims.append(victim)
        return bool(victim)

    while True:
        with running_worker() as worker:
            while remaining:
                wait_until(has_victim, f"a running job of kind {remaining[0][1]}", 400, 0.01)
                role, _kind = remaining.pop(0)
                job = victims.pop()
                hit.add(job.pk)
                pids = {"engine": job.child_pid, "supervisor": job.pid, "worker": worker.pid}
                os.kill(pids[role] or 0, signal.SIGKILL)
                if role == "worker":
                    break
            else:
                wait_until(lambda: is_over(study), "the study's end", 400)
                return


def without(value: Any) -> Any:
    """Return the JSON value without the keys that are not compared."""
    if isinstance(value, dict):
        return {name: without(item) for name, item in value.items() if name not in NOT_COMPARED}
    return [without(item) for item in value] if isinstance(value, list) else value


def read_results(client: Client, study: Study) -> tuple[Any, Any, dict[tuple[str, int], str]]:
    """Return the study and its export from the API, and the checksum of every adapter."""
    detail, export = (client.get(f"/api/v1/studies/{study.pk}{path}") for path in ("", "/export"))
    assert (detail.status_code, export.status_code) == (200, 200)
    adapters = Adapter.objects.filter(run__study_arm__study=study).select_related("run__study_arm")
    checksums = {(str(adapter.run.study_arm), adapter.run.seed): adapter.sha256 for adapter in adapters}
    return without(detail.json()), without(export.json()), checksums


@pytest.mark.proof
@pytest.mark.django_db(transaction=True)
def test_kills_change_no_number_of_a_study(
    broker: Redis,
    launch: Callable[..., Study],  # noqa: F811
    token: str,
) -> None:
    arms = [arm("efficient", max_steps=6), arm("quality", max_steps=6)]
    plan: dict[str, Any] = {"arms": arms, "seeds": [1, 2], "learning_rates": [1e-3, 1e-2]}
    client = Client(headers={"Authorization": f"Bearer {token}"})
    with running("manage.py", "dispatch"):
        undisturbed = launch(**plan)
        with running_worker():
            wait_until(lambda: is_over(undisturbed), "the end of the undisturbed study", 400)
        study = launch(**plan)
        run_through_kills(study)
    interrupted = JobEvent.objects.filter(job__in=study.jobs(), to_state=State.INTERRUPTED).count()
    assert interrupted == len(KILLS)
    assert set(study.jobs().values_list("state", flat=True)) == {State.SUCCEEDED}
    assert set(undisturbed.jobs().values_list("attempt", flat=True)) == {1}
    assert undisturbed.jobs().count() == study.jobs().count()
    expected, results = read_results(client, undisturbed), read_results(client, study)
    assert expected[0]["state"] == "succeeded"
    evaluated = 1 + 2 * len(plan["seeds"])
    assert len(expected[1]["scores"]) == evaluated * 4, "the base model and each adapter on every test row"
    assert results == expected
