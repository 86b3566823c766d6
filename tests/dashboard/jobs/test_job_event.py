"""A history is appended to; nothing changes or deletes a line of it, and it goes with its job."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import transaction
from django.db.models import QuerySet

from dashboard.models import Job, JobEvent, Project
from tests.conftest import finish


@pytest.fixture
def job(project: Project) -> Job:
    """An import that has come to its end."""
    return finish(Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None))


def lines() -> list[dict[str, object]]:
    return list(JobEvent.objects.order_by("pk").values())


WAYS: list[Callable[[Job], QuerySet[JobEvent]]] = [
    lambda _job: JobEvent.objects.all(),
    lambda job: JobEvent.objects.filter(job=job, event="claim"),
    lambda job: job.events.all(),
]


@pytest.mark.parametrize("way", WAYS)
def test_no_line_is_changed(job: Job, way: Callable[[Job], QuerySet[JobEvent]]) -> None:
    before = lines()
    with pytest.raises(TypeError, match="never changed"):
        way(job).update(actor="somebody else")
    assert lines() == before


@pytest.mark.parametrize("way", WAYS)
def test_no_line_is_deleted(job: Job, way: Callable[[Job], QuerySet[JobEvent]]) -> None:
    before = lines()
    with pytest.raises(TypeError, match="never deleted"):
        way(job).delete()
    assert lines() == before


def test_the_row_itself_refuses_too(job: Job) -> None:
    before, line = lines(), job.events.get(event="claim")
    line.actor = "somebody else"
    for act in (line.save, line.delete, lambda: JobEvent.objects.bulk_update([line], ["actor"])):
        with pytest.raises(TypeError), transaction.atomic():
            act()
    assert lines() == before


def test_a_history_goes_with_its_job(job: Job) -> None:
    other = Job.objects.submit(Job.Kind.IMPORT, {}, project=job.project, by=None)
    job.delete()
    assert [line["job_id"] for line in lines()] == [other.pk]


def test_a_history_goes_with_its_project(job: Job, project: Project) -> None:
    Project.objects.filter(pk=project.pk).delete()
    assert lines() == []
