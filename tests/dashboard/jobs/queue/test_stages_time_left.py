"""How long work still takes is told where it ends by itself, and nowhere once it was asked to end now."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dashboard.models import BaseModel, Dataset, Job, Project, State, TrainingRun, User
from dashboard.models.jobs.queue import STOP_SECONDS, remaining_seconds
from dashboard.presenters.stages import time_left
from tests.dashboard.studies.factories import make_study

HOURS = 3 * 3600.0


def at_work(job: Job | None, **fields: object) -> Job:
    """The job with hours before it by its own estimate."""
    assert job
    Job.objects.filter(pk=job.pk).update(
        state=State.RUNNING, attempt=1, phase="training", step=1, total_steps=10, eta_seconds=HOURS,
        started_at=timezone.now(), **fields
    )  # fmt: skip
    return Job.objects.get(pk=job.pk)


def pages(client: Client, user: User, run: TrainingRun) -> dict[str, str]:
    """Every page that tells how long the run takes."""
    client.force_login(user)
    progress = reverse("training-run-progress", args=[run.pk])
    addresses = {
        "home": reverse("home-progress"),
        "run": progress,
        "cell": f"{progress}?part=cell",
        "queue": reverse("queue-board"),
    }
    return {name: client.get(address).content.decode() for name, address in addresses.items()}


def test_every_page_tells_how_long_a_run_takes(client: Client, ed: User, run: TrainingRun) -> None:
    at_work(run.job)
    assert [name for name, text in pages(client, ed, run).items() if " left" not in text] == []


def test_no_page_tells_it_of_a_run_that_was_asked_to_finish(
    client: Client, ed: User, run: TrainingRun
) -> None:
    at_work(run.job, keep=Job.Keep.ADAPTER)
    assert [name for name, text in pages(client, ed, run).items() if " left" in text] == []


@pytest.mark.parametrize("state", [state for state in State if state != State.RUNNING])
def test_nothing_but_work_has_time_left(run: TrainingRun, state: State) -> None:
    run.job = at_work(run.job)
    run.job.state = state
    assert time_left(run) is None


def test_a_study_tells_no_hours_of_a_job_that_ends_now(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, by=ed, seeds=[1])
    client.force_login(ed)
    address = reverse("study-grid", args=[study.pk])
    job = at_work(study.jobs().first())
    text = client.get(address).content.decode()
    assert "about 3 h left" in text
    assert "training ends in about" in text
    Job.objects.filter(pk=job.pk).update(keep=Job.Keep.ADAPTER)
    text = client.get(address).content.decode()
    assert " left" not in text
    assert "training ends in about" not in text


@pytest.mark.parametrize("asked", [{"keep": Job.Keep.ADAPTER}, {"state": State.CANCELLING}])
def test_who_waits_behind_a_job_that_ends_now_does_not_wait_for_hours(
    run: TrainingRun, asked: dict[str, str]
) -> None:
    job = at_work(run.job)
    assert remaining_seconds(job, 0.0) == HOURS
    for name, value in asked.items():
        setattr(job, name, value)
    assert remaining_seconds(job, 0.0) == STOP_SECONDS
