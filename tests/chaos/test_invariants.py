"""The invariant checks find each kind of violation."""

from __future__ import annotations

import pytest

from dashboard.models import Adapter, Job, JobEvent, MetricSeries, State, TrainingRun
from dashboard.models.adapters.adapter import WEIGHTS
from tests.chaos import invariants
from tests.chaos.storm import InjectedFault
from tests.chaos.workload import SubmittedJob
from tests.conftest import finish, rewrite


@pytest.fixture
def job(run: TrainingRun) -> Job:
    """The only job: a training that succeeded, submitted with the key "one"."""
    assert run.job is not None
    Job.objects.exclude(pk=run.job.pk).delete()
    Job.objects.filter(pk=run.job.pk).update(idempotency_key="one")
    finish(run.job)
    run.end("succeeded", step=10)
    return Job.objects.get(pk=run.job.pk)


def submitted(job: Job, **values: object) -> list[SubmittedJob]:
    runs = list(job.training_runs.order_by("pk").values_list("pk", flat=True))
    return [SubmittedJob(0, "one", runs, **values)]  # type: ignore[arg-type]


def kills(job: Job, *attempts: int) -> list[InjectedFault]:
    return [InjectedFault(0.0, "worker", 1, 0.0, ((job.pk, attempt),)) for attempt in attempts]


def store_curves(run: TrainingRun, last: int, *, gap_in: str = "", gap: int = 0) -> None:
    """Store all curves up to a step, one of them with a missing step if wanted."""
    for name in (*invariants.STEP_METRICS, invariants.VALIDATION_LOSS):
        is_validation = name == invariants.VALIDATION_LOSS
        steps = invariants.validation_steps(run) if is_validation else range(1, last + 1)
        points = [(step, 1.0) for step in steps if step <= last and (name != gap_in or step != gap)]
        MetricSeries.objects.append(run, name, points)


def test_clean_job_violates_nothing(job: Job) -> None:
    assert invariants.find_illegal_moves() == invariants.find_wrong_ends(submitted(job)) == []


def test_missing_job_is_found(job: Job) -> None:
    assert invariants.find_wrong_ends([SubmittedJob(0, "two", [1])]) == ["two: 0 jobs"]


def test_wrong_end_and_open_job_are_found(job: Job) -> None:
    assert len(invariants.find_wrong_ends(submitted(job, allowed={"cancelled"}))) == 1
    Job.objects.filter(pk=job.pk).update(state=State.RUNNING)
    assert invariants.find_wrong_ends([]) == [f"job {job.pk} (train) is running"]


def test_other_run_of_a_stopped_job_may_have_succeeded(job: Job) -> None:
    (first,) = job.training_runs.all()
    TrainingRun.objects.filter(pk=first.pk).update(outcome="cancelled")
    second = TrainingRun.objects.get(pk=first.pk)
    second.pk, second._state.adding, second.outcome = None, True, "succeeded"
    second.save()
    assert invariants.find_wrong_ends(submitted(job, keep="", allowed={"cancelled"})) == []
    TrainingRun.objects.filter(pk=second.pk).update(outcome="failed")
    assert len(invariants.find_wrong_ends(submitted(job, keep="", allowed={"cancelled"}))) == 1


def test_lost_adapter_of_a_stop_that_keeps_it_is_found(job: Job) -> None:
    (run,) = job.training_runs.all()
    TrainingRun.objects.filter(pk=run.pk).update(outcome="cancelled")
    items = submitted(job, keep="adapter", allowed={"succeeded", "stopped_early", "cancelled"})
    assert invariants.find_wrong_ends(items) == []
    MetricSeries.objects.append(run, "train/loss", [(1, 1.0)])
    assert len(invariants.find_wrong_ends(items)) == 1
    assert invariants.find_wrong_ends(items, kills(job, 1)) == []


def test_failed_evaluation_is_found_unless_kills_used_up_its_attempts(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(
        kind=Job.Kind.EVALUATE, state=State.FAILED, error_code="worker_lost", attempt=3
    )
    assert invariants.find_wrong_ends([]) == [f"job {job.pk} (evaluate) is failed"]
    assert invariants.find_wrong_ends([], kills(job, 1, 2, 3)) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"from_state": "queued"}, "starting -> queued -> running"),
        ({"attempt": 0}, "written by attempt 0 after 1 had begun"),
        ({"seq": 9}, "follows"),
    ],
)
def test_illegal_move_is_found(job: Job, change: dict[str, object], expected: str) -> None:
    rewrite(JobEvent.objects.filter(job=job, event="progress"), **change)
    assert any(expected in line for line in invariants.find_illegal_moves())


def test_move_without_an_event_is_found(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(state=State.FAILED)
    assert len(invariants.find_illegal_moves()) == 1


def test_missing_adapters_files_and_evaluations_are_found(job: Job) -> None:
    (run,) = job.training_runs.all()
    assert invariants.find_wrong_adapters() == [f"run {run.pk} (succeeded) has 0 adapters"]
    adapter = Adapter.objects.publish(run, "0" * 64, {WEIGHTS: "0" * 64}, 1)
    assert [line.split(":")[0] for line in invariants.find_wrong_adapters()] == [f"adapter {adapter.pk}"]
    assert invariants.find_unevaluated() == [f"adapter {adapter.pk}"]


@pytest.mark.parametrize("name", ["train/grad_norm", invariants.VALIDATION_LOSS])
def test_missing_step_and_missing_curve_are_found(job: Job, name: str) -> None:
    (run,) = job.training_runs.all()
    store_curves(run, 10, gap_in=name, gap=3)
    (violation,) = invariants.find_wrong_curves()
    assert violation.startswith(f"run {run.pk}, {name}: ")
    assert violation.endswith("missing [3]")
    MetricSeries.objects.get(name=name).delete()
    assert len(invariants.find_wrong_curves()) == 1


@pytest.mark.parametrize(("outcome", "violations"), [("cancelled", 0), ("succeeded", 1)])
def test_only_a_stopped_run_may_lack_its_last_validation(job: Job, outcome: str, violations: int) -> None:
    (run,) = job.training_runs.all()
    TrainingRun.objects.filter(pk=run.pk).update(outcome=outcome, ended_step=10)
    store_curves(run, 10, gap_in=invariants.VALIDATION_LOSS, gap=10)
    assert len(invariants.find_wrong_curves()) == violations


@pytest.mark.parametrize(
    ("outcome", "last", "is_clean"), [("stopped_early", 10, True), ("succeeded", 12, False)]
)
def test_steps_after_the_last_one_are_found(job: Job, outcome: str, last: int, is_clean: bool) -> None:
    (run,) = job.training_runs.all()
    TrainingRun.objects.filter(pk=run.pk).update(outcome=outcome, ended_step=8)
    store_curves(run, last)
    assert (invariants.find_wrong_curves() == []) == is_clean


def test_leftover_checkpoint_folder_is_found(job: Job) -> None:
    before = set(invariants.find_leftovers())
    job.checkpoint_folder().mkdir(parents=True)
    assert set(invariants.find_leftovers()) - before == {f"checkpoints/job-{job.pk}"}
    job.checkpoint_folder().rmdir()
