"""A study that cannot go on as planned: it stops what still works, and nobody's own stop is overruled."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from dashboard.models import BaseModel, Dataset, Job, Project, Study, User
from tests.dashboard.conftest import make_checkpoint
from tests.dashboard.studies.factories import make_study
from workers.contract.errors import SpecError


@pytest.fixture
def jobs(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User, monkeypatch: pytest.MonkeyPatch
) -> list[Job]:
    """Three seeds at work, of a study whose base model has changed since its launch."""
    study = make_study(project, dataset, base_model, by=ed)
    jobs = list(study.jobs().order_by("pk"))
    for job in jobs:
        job.move("claim", attempt=1, worker="w@host")
        job.move("progress")
        job.update_progress(step=5)
    changed = SpecError("base_model", "The base model has changed.")
    monkeypatch.setattr(Study, "_queue_next", Mock(side_effect=changed))
    return jobs


def wanted(jobs: list[Job]) -> list[str | None]:
    return [job.read_stop_request() for job in jobs]


def test_it_leaves_what_a_person_is_stopping_as_they_asked(jobs: list[Job], ed: User) -> None:
    jobs[0].request_cancel(ed, "adapter")
    jobs[1].request_cancel(ed, "checkpoint")
    study = Study.objects.get()
    study.advance()
    assert wanted(jobs) == ["finish", "park", "cancel"]
    assert study.stop_reason == "The base model has changed."


def test_it_is_judged_once_that_has_ended(jobs: list[Job], ed: User) -> None:
    make_checkpoint(jobs[1], step=4)
    jobs[1].request_cancel(ed, "checkpoint")
    Study.objects.get().advance()
    for job in jobs:
        assert not Study.objects.get().is_over
        job.refresh_from_db()
        job.complete_stop()
        Study.objects.get().advance()
    assert Study.objects.get().is_over
    assert Job.objects.get(pk=jobs[1].pk).keeps_checkpoint


def test_a_person_who_stops_it_stops_every_job_with_it(jobs: list[Job], ed: User) -> None:
    jobs[0].request_cancel(ed, "adapter")
    jobs[1].request_cancel(ed, "checkpoint")
    Study.objects.get().request_cancel(ed)
    assert wanted(jobs) == ["cancel"] * 3
