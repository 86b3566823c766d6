"""A worker that clears checkpoints may be overtaken meanwhile: what a later attempt has written stays."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from dashboard.models import Job, State, TrainingRun
from tests.workers.conftest import claim
from workers import tasks

pytestmark = pytest.mark.django_db(transaction=True)
WAITS_SECONDS = 1.0
Overtake = Callable[[Callable[[], object]], list[bool]]


@pytest.fixture
def job(run: TrainingRun) -> Job:
    """In its first attempt, with checkpoints in its folder."""
    job = claim("gpu")
    (job.checkpoint_folder() / "000004").mkdir(parents=True)
    return job


@pytest.fixture
def overtake(job: Job, monkeypatch: pytest.MonkeyPatch) -> Iterator[Overtake]:
    """Let somebody change the row at the moment at which the folder goes; whether they had to wait."""
    others: list[threading.Thread] = []

    def watch(change: Callable[[], object]) -> list[bool]:
        waited: list[bool] = []
        folder = job.checkpoint_folder()

        def change_and_hang_up() -> None:
            change()
            connection.close()

        def meanwhile(act: Callable[..., Any]) -> Callable[..., Any]:
            def go(path: Path, *rest: Any, **named: Any) -> Any:
                if path != folder or waited:
                    return act(path, *rest, **named)
                other = threading.Thread(target=change_and_hang_up)
                others.append(other)
                other.start()
                other.join(WAITS_SECONDS)
                waited.append(other.is_alive())
                return act(path, *rest, **named)

            return go

        monkeypatch.setattr(shutil, "rmtree", meanwhile(shutil.rmtree))
        monkeypatch.setattr(Path, "rename", meanwhile(Path.rename))
        return waited

    yield watch
    for other in others:
        other.join()


def left(job: Job) -> list[str]:
    """What lies where checkpoints are, of this job."""
    return [path.name for path in job.checkpoint_folder().parent.glob(f"*job-{job.pk}")]


def test_nobody_takes_a_job_over_while_its_first_attempt_clears_the_folder(
    job: Job, overtake: Overtake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_execute", lambda *_: None)
    waited = overtake(lambda: Job.objects.filter(pk=job.pk).update(attempt=2))
    tasks.attempt(job, lambda: False)
    assert (waited, left(job)) == ([True], [])


def test_nobody_resumes_a_job_while_its_checkpoints_are_cleared(job: Job, overtake: Overtake) -> None:
    job.request_cancel()
    job.complete_stop()
    waited = overtake(lambda: Job.objects.filter(pk=job.pk).update(state=State.QUEUED))
    tasks._delete_checkpoints(job)
    assert (waited, left(job)) == ([True], [])
