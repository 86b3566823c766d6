"""A job's history is append-only, and deleted only with its job."""

from __future__ import annotations

import pytest
from django.db import transaction

from dashboard.models import Job, JobEvent, Project
from tests.conftest import finish


@pytest.fixture
def job(project: Project) -> Job:
    return finish(Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None))


def rows() -> list[dict[str, object]]:
    return list(JobEvent.objects.order_by("pk").values())


def test_events_cannot_be_changed_or_deleted(job: Job) -> None:
    before, event = rows(), job.events.get(event="claim")
    event.actor = "somebody else"
    attempts = [
        lambda: JobEvent.objects.filter(job=job).update(actor="somebody else"),
        lambda: JobEvent.objects.all().delete(),
        lambda: job.events.all().update(actor="somebody else"),
        lambda: job.events.all().delete(),
        lambda: JobEvent.objects.bulk_update([event], ["actor"]),
        event.save,
        event.delete,
    ]
    for attempt in attempts:
        with pytest.raises(TypeError), transaction.atomic():
            attempt()
    assert rows() == before


def test_events_are_deleted_with_their_job_or_project(job: Job, project: Project) -> None:
    other = Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None)
    job.delete()
    assert [row["job_id"] for row in rows()] == [other.pk]
    Project.objects.filter(pk=project.pk).delete()
    assert rows() == []
