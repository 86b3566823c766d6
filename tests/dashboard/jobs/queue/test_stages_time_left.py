"""The time left of running work, which a stopping job does not have."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dashboard.models import BaseModel, Dataset, Job, Project, State, TrainingRun, User
from dashboard.models.jobs.queue_forecast import STOP_SECONDS, remaining_seconds
from dashboard.presenters.stages import time_left
from tests.dashboard.studies.factories import make_study

HOURS = 3 * 3600.0


def running(job: Job | None, **fields: object) -> Job:
    """Let the job run with hours left by its own estimate."""
    assert job
    Job.objects.filter(pk=job.pk).update(
        state=State.RUNNING, attempt=1, phase="training", step=1, total_steps=10, eta_seconds=HOURS,
        started_at=timezone.now(), **fields
    )  # fmt: skip
    return Job.objects.get(pk=job.pk)


def pages(client: Client, user: User, run: TrainingRun) -> dict[str, str]:
    """Return every page that shows the time left of a run."""
    client.force_login(user)
    progress = reverse("training-run-progress", args=[run.pk])
    addresses = {
        "home": reverse("home-progress"),
        "run": progress,
        "list": f"{reverse('training-run-states')}?runs={run.pk}",
        "queue": reverse("queue-board"),
    }
    return {name: client.get(address).content.decode() for name, address in addresses.items()}


def test_every_page_shows_the_time_left(client: Client, ed: User, run: TrainingRun) -> None:
    running(run.job)
    assert [name for name, text in pages(client, ed, run).items() if " left" not in text] == []


def test_no_page_shows_the_time_left_of_a_stopping_run(client: Client, ed: User, run: TrainingRun) -> None:
    running(run.job, keep=Job.Keep.ADAPTER)
    assert [name for name, text in pages(client, ed, run).items() if " left" in text] == []


def test_only_a_running_job_has_time_left(run: TrainingRun) -> None:
    run.job = running(run.job)
    for state in State:
        run.job.state = state
        assert (time_left(run) is None) == (state != State.RUNNING)


def test_a_study_shows_no_time_left_of_a_stopping_job(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, by=ed, seeds=[1])
    client.force_login(ed)
    address = reverse("study-grid", args=[study.pk])
    job = running(study.jobs().first())
    text = client.get(address).content.decode()
    assert "about 3 h left" in text
    assert "training ends in about" in text
    Job.objects.filter(pk=job.pk).update(keep=Job.Keep.ADAPTER)
    text = client.get(address).content.decode()
    assert " left" not in text
    assert "training ends in about" not in text


@pytest.mark.parametrize("change", [{"keep": Job.Keep.ADAPTER}, {"state": State.CANCELLING}])
def test_a_stopping_job_takes_seconds(run: TrainingRun, change: dict[str, str]) -> None:
    job = running(run.job)
    assert remaining_seconds(job, 0.0) == HOURS
    for name, value in change.items():
        setattr(job, name, value)
    assert remaining_seconds(job, 0.0) == STOP_SECONDS
