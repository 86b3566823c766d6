"""Cancel of all jobs of a study in one transaction, without deadlocks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection

from dashboard.models import BaseModel, Dataset, IllegalMove, Job, Project, State, Study, User
from tests.dashboard.studies.factories import make_study

SEEDS = [1, 2, 3, 4, 5, 6]


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Queued: a job for each seed."""
    return make_study(project, dataset, base_model, by=ed, seeds=SEEDS)


def test_interrupted_cancel_stops_nothing(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel, asked = Job.request_cancel, []

    def break_off(job: Job, by: User | None = None, keep: str = "") -> bool:
        asked.append(job.pk)
        if len(asked) == 3:
            raise RuntimeError
        return cancel(job, by, keep)

    monkeypatch.setattr(Job, "request_cancel", break_off)
    with pytest.raises(RuntimeError):
        study.request_cancel()
    assert set(study.jobs().values_list("state", flat=True)) == {State.QUEUED}
    again = Study.objects.get(pk=study.pk)
    assert (again.state, again.cancelled_at) == (State.QUEUED, None)
    monkeypatch.undo()
    assert again.request_cancel()
    assert again.state == State.CANCELLED


@pytest.mark.django_db(transaction=True)
def test_cancel_does_not_deadlock_with_workers_and_advance(
    study: Study,
) -> None:
    pks = list(study.jobs().order_by("pk").values_list("pk", flat=True))
    start, over = threading.Barrier(3), threading.Event()

    def alone(act: Callable[[], object]) -> None:
        try:
            start.wait()
            act()
        finally:
            over.set()
            connection.close()

    def work() -> None:
        """Claim and release the jobs from the last to the first, like a worker."""
        while not over.is_set():
            for pk in reversed(pks):
                job = Job.objects.get(pk=pk)
                try:
                    job.move("claim", attempt=job.attempt + 1, worker="w@host")
                    job.add_message("It works.")
                    job.interrupt("It ends.", counts_as_failure=False)
                    job.move("requeue")
                except IllegalMove:
                    continue

    def advance() -> None:
        while not over.is_set():
            Study.objects.get(pk=study.pk).advance()

    def stop() -> None:
        threading.Event().wait(0.5)
        assert Study.objects.get(pk=study.pk).request_cancel()

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(alone, act) for act in (work, advance, stop)]:
            done.result()
    for job in Job.objects.filter(pk__in=pks, state=State.CANCELLING):
        job.move("stopped")
    assert set(study.jobs().values_list("state", flat=True)) == {State.CANCELLED}
    Study.objects.get(pk=study.pk).advance()
    assert Study.objects.get(pk=study.pk).state == State.CANCELLED
