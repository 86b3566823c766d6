"""Advance of a study whose plan is outdated: it cancels its jobs and keeps earlier stop requests."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from dashboard.models import BaseModel, Dataset, Job, Project, Study, TrainingRun, User, WorkerNode
from tests.dashboard.conftest import make_checkpoint
from tests.dashboard.studies.factories import TABLE, end_evaluation, end_training, make_study
from workers.contract.errors import SpecError


@pytest.fixture
def jobs(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User, monkeypatch: pytest.MonkeyPatch
) -> list[Job]:
    """Return the running jobs of three seeds of a study whose base model has changed."""
    study = make_study(project, dataset, base_model, by=ed)
    jobs = list(study.jobs().order_by("pk"))
    for job in jobs:
        job.move("claim", attempt=1, worker="w@host")
        job.move("progress")
        job.update_progress(step=5)
    changed = SpecError("base_model", "The base model has changed.")
    monkeypatch.setattr("dashboard.models.studies.study.queue_next", Mock(side_effect=changed))
    return jobs


def stop_requests(jobs: list[Job]) -> list[str | None]:
    return [job.read_stop_request() for job in jobs]


def test_earlier_stop_requests_are_kept(jobs: list[Job], ed: User) -> None:
    jobs[0].request_cancel(ed, "adapter")
    jobs[1].request_cancel(ed, "checkpoint")
    study = Study.objects.get()
    study.advance()
    assert stop_requests(jobs) == ["finish", "park", "cancel"]
    assert study.stop_reason == "The base model has changed."


def test_result_waits_for_the_stopped_jobs(jobs: list[Job], ed: User) -> None:
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


def test_cancel_by_a_user_stops_every_job(jobs: list[Job], ed: User) -> None:
    jobs[0].request_cancel(ed, "adapter")
    jobs[1].request_cancel(ed, "checkpoint")
    Study.objects.get().request_cancel(ed)
    assert stop_requests(jobs) == ["cancel"] * 3


def test_workers_share_the_arms_of_each_seed(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    WorkerNode.objects.register("gpu0@host", queue="gpu", host="host", pid=1, processes=2)
    study = make_study(
        project, dataset, base_model, by=ed, slugs=("efficient", "mlp", "quality"), seeds=[1, 2]
    )
    jobs = [
        [run.study_arm.name for run in job.training_runs.order_by("pk")]  # type: ignore[union-attr]
        for job in study.jobs().order_by("pk")
    ]
    # The longest alone, the others together in the order of the plan.
    assert jobs == [["quality"], ["efficient", "mlp"]] * 2


def scored_by(job: Job) -> list[str]:
    """Return the arms whose adapters an evaluation job scores, and `base` if it scores the base model."""
    rows = job.evaluations.order_by("pk")
    return [row.run.study_arm.name if row.adapter_id else row.subject for row in rows]  # type: ignore[union-attr]


def test_adapters_are_scored_when_their_own_job_ends(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    WorkerNode.objects.register("gpu0@host", queue="gpu", host="host", pid=1, processes=2)
    study = make_study(project, dataset, base_model, by=ed, slugs=("efficient", "mlp", "quality"), seeds=[1])
    trainings, evaluations = (study.jobs().filter(kind=kind).order_by("pk") for kind in ("train", "evaluate"))
    quality, others = trainings
    for run in others.training_runs.order_by("pk")[:1]:  # a run that ended before the others of its job
        run.end(TrainingRun.Outcome.FAILED, step=3)
    study.advance()
    assert not evaluations.exists()
    end_training(quality)
    study.advance()
    study.advance()
    assert [scored_by(job) for job in evaluations.all()] == [["base", "quality"]]
    end_training(others)
    study.advance()
    assert [scored_by(job) for job in evaluations.all()] == [["base", "quality"], ["mlp"]]
    for job in evaluations.all():
        end_evaluation(job, TABLE, "exact_match")
    study.advance()
    assert study.is_over
    assert {one.arm for one in study.result.comparisons} == {"mlp"}
