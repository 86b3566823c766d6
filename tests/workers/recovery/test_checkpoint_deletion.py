"""Deleting checkpoints locks the job, so that a later attempt loses none."""

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
    """A first attempt with a checkpoint."""
    job = claim("gpu")
    (job.checkpoint_folder() / "000004").mkdir(parents=True)
    return job


@pytest.fixture
def overtake(job: Job, monkeypatch: pytest.MonkeyPatch) -> Iterator[Overtake]:
    """Change the row while the folder is deleted; report whether the change had to wait."""
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
    """Return the names of the job's checkpoint folders."""
    return [path.name for path in job.checkpoint_folder().parent.glob(f"*job-{job.pk}")]


def test_takeover_waits_while_the_first_attempt_clears_the_folder(
    job: Job, overtake: Overtake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_execute", lambda *_: None)
    waited = overtake(lambda: Job.objects.filter(pk=job.pk).update(attempt=2))
    tasks.attempt(job, lambda: False)
    assert (waited, left(job)) == ([True], [])


def test_resume_waits_while_checkpoints_are_deleted(job: Job, overtake: Overtake) -> None:
    job.request_cancel()
    job.complete_stop()
    waited = overtake(lambda: Job.objects.filter(pk=job.pk).update(state=State.QUEUED))
    tasks._delete_checkpoints(job)
    assert (waited, left(job)) == ([True], [])
