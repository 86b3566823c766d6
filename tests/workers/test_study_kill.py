"""A study whose worker is killed again and again comes to the numbers of one that nobody disturbed.

Real broker, dispatcher, worker and engine. Kills hit the engine, the process that supervises it, and the
whole worker: while rates are looked for, while arms train and are published, and between two scored models.
"""

from __future__ import annotations

import os
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
from tests.workers.test_study import arm, launch  # noqa: F401 - a fixture
from workers import faults

# One life of the worker after the other: what hits its engine or its supervisor, and at which of these points
# the whole worker is killed while it waits there.
LIVES = (
    (
        ("train.after_step=kill@5", "save.before_end=kill@1", "metrics.after_commit=kill@2"),
        "publish.before_commit=pause:60@1",
    ),
    (
        ("train.after_step=kill@3", "publish.inside_commit=kill@1", "score.after_subject=kill@1"),
        "score.after_subject=pause:60@2",
    ),
    (("score.after_subject=kill@2",), ""),
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


def live_through(study: Study, markers: Path) -> None:
    """Every life of the worker, the last one until the study is over."""
    for number, (strikes, last) in enumerate(LIVES):
        folder = markers / str(number)
        asked = ";".join((*strikes, *filter(None, (last,))))
        with working(**{faults.ASKED: asked, faults.ONCE: str(folder)}) as worker:
            if last:
                mark = folder / faults.marker(last)
                until(mark.exists, 400, f"{last} in life {number}")
                worker.kill()
            else:
                until(lambda: is_over(study), 400, "the study's end")
        struck = {path.name for path in folder.iterdir()}
        assert struck == {faults.marker(text) for text in asked.split(";")}, "every strike has hit"


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
    tmp_path: Path,
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
        live_through(stormy, tmp_path)
    killed = JobEvent.objects.filter(job__in=stormy.jobs(), to_state=State.INTERRUPTED).count()
    # A supervisor that is killed just after its engine is one interruption.
    assert len(LIVES) < killed <= sum(len(strikes) + bool(last) for strikes, last in LIVES)
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
