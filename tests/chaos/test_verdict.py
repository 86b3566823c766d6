"""The storm's judge is worth nothing unless it finds what it looks for."""

from __future__ import annotations

import pytest

from dashboard.models import Adapter, Job, JobEvent, MetricSeries, State, TrainingRun
from dashboard.models.adapter import WEIGHTS
from tests.chaos import verdict
from tests.chaos.work import Asked
from tests.conftest import finish


@pytest.fixture
def job(run: TrainingRun) -> Job:
    """A training that ended as it should, with a name for the people of the storm."""
    assert run.job is not None
    Job.objects.exclude(pk=run.job.pk).delete()
    Job.objects.filter(pk=run.job.pk).update(idempotency_key="one")
    finish(run.job)
    run.end("succeeded", step=10)
    return Job.objects.get(pk=run.job.pk)


def test_it_has_nothing_against_a_clean_history(job: Job) -> None:
    assert verdict.illegal_moves() == []


def test_it_finds_a_job_that_is_gone_or_there_twice(job: Job) -> None:
    assert verdict.wrong_ends([Asked(0, "one", [1])]) == []
    assert verdict.wrong_ends([Asked(0, "two", [1])]) == ["two: 0 jobs"]


def test_it_finds_a_wrong_end_and_a_job_that_never_ends(job: Job) -> None:
    assert len(verdict.wrong_ends([Asked(0, "one", [1], right={"cancelled"})])) == 1
    Job.objects.filter(pk=job.pk).update(state=State.RUNNING)
    assert verdict.wrong_ends([]) == [f"job {job.pk} (train) is running"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"from_state": "queued"}, "starting -> queued -> running"),
        ({"attempt": 0}, "written by attempt 0 after 1 had begun"),
        ({"seq": 9}, "follows"),
    ],
)
def test_it_finds_moves_that_no_table_lists(job: Job, change: dict[str, object], what: str) -> None:
    JobEvent.objects.filter(job=job, event="progress").update(**change)
    assert any(what in line for line in verdict.illegal_moves())


def test_it_finds_a_row_that_moved_without_a_word(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(state=State.FAILED)
    assert len(verdict.illegal_moves()) == 1


def test_it_finds_missing_adapters_and_missing_files(job: Job) -> None:
    (run,) = job.training_runs.all()
    assert verdict.adapter_faults() == [f"run {run.pk} (succeeded) has 0 adapters"]
    adapter = Adapter.objects.publish(run, "0" * 64, {WEIGHTS: "0" * 64}, 1)
    assert [line.split(":")[0] for line in verdict.adapter_faults()] == [f"adapter {adapter.pk}"]


def test_it_finds_a_gap_in_a_curve(job: Job) -> None:
    (run,) = job.training_runs.all()
    MetricSeries.objects.append(run, "train/loss", [(step, 1.0) for step in range(1, 11) if step != 5])
    assert verdict.curve_faults() == [f"run {run.pk}: 9 points for 10 steps, missing [5]"]


def test_it_finds_folders_that_nobody_reads(job: Job) -> None:
    job.checkpoint_folder().mkdir(parents=True)
    assert verdict.leftovers() == [f"checkpoints/job-{job.pk}"]
    job.checkpoint_folder().rmdir()
