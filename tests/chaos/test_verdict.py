"""The storm's judge is worth nothing unless it finds what it looks for."""

from __future__ import annotations

import pytest

from dashboard.models import Adapter, Job, JobEvent, MetricSeries, State, TrainingRun
from dashboard.models.adapters.adapter import WEIGHTS
from tests.chaos import verdict
from tests.chaos.storm import Hit
from tests.chaos.work import Asked
from tests.conftest import finish, rewrite


@pytest.fixture
def job(run: TrainingRun) -> Job:
    """A training that ended as it should, with a name for the people of the storm."""
    assert run.job is not None
    Job.objects.exclude(pk=run.job.pk).delete()
    Job.objects.filter(pk=run.job.pk).update(idempotency_key="one")
    finish(run.job)
    run.end("succeeded", step=10)
    return Job.objects.get(pk=run.job.pk)


def the_run(job: Job) -> list[int]:
    return list(job.training_runs.values_list("pk", flat=True))


def draw(run: TrainingRun, last: int, *, spoilt: str = "", without: int = 0) -> None:
    """All its curves up to a step, one of them perhaps with a gap. Held-out losses begin with the base's."""
    for name in (*verdict.EACH_STEP, verdict.HELD_OUT):
        gap, first = without if name == spoilt else None, int(name != verdict.HELD_OUT)
        points = [(step, 1.0) for step in range(first, last + 1) if step != gap]
        MetricSeries.objects.append(run, name, points)


def test_it_has_nothing_against_a_clean_history(job: Job) -> None:
    assert verdict.illegal_moves() == []


def test_it_finds_a_job_that_is_gone_or_there_twice(job: Job) -> None:
    assert verdict.wrong_ends([Asked(0, "one", the_run(job))]) == []
    assert verdict.wrong_ends([Asked(0, "two", [1])]) == ["two: 0 jobs"]


def test_it_finds_a_wrong_end_and_a_job_that_never_ends(job: Job) -> None:
    assert len(verdict.wrong_ends([Asked(0, "one", the_run(job), right={"cancelled"})])) == 1
    Job.objects.filter(pk=job.pk).update(state=State.RUNNING)
    assert verdict.wrong_ends([]) == [f"job {job.pk} (train) is running"]


def test_it_finds_an_arm_that_was_stopped_with_another(job: Job) -> None:
    first = the_run(job)
    second = TrainingRun.objects.get(pk=first[0])
    second.pk, second._state.adding, second.outcome = None, True, "cancelled"
    second.save()
    asked = Asked(0, "one", [*first, second.pk], keep="", right={"succeeded", "cancelled"})
    assert len(verdict.wrong_ends([asked])) == 1


def test_it_finds_an_adapter_that_was_to_be_kept(job: Job) -> None:
    (run,) = job.training_runs.all()
    TrainingRun.objects.filter(pk=run.pk).update(outcome="cancelled")
    asked = Asked(0, "one", [run.pk], keep="adapter", right={"succeeded", "stopped_early", "cancelled"})
    assert verdict.wrong_ends([asked]) == [], "nothing was learned, so there was nothing to keep"
    MetricSeries.objects.append(run, "train/loss", [(1, 1.0)])
    assert len(verdict.wrong_ends([asked])) == 1
    blow = Hit(0.0, "worker", 1, 0.0, ((job.pk, 1),))
    assert verdict.wrong_ends([asked], [blow]) == [], "what its worker had learned died with it"


def test_it_finds_a_failed_evaluation_unless_the_storm_wore_it_out(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(
        kind=Job.Kind.EVALUATE, state=State.FAILED, error_code="worker_lost", attempt=3
    )
    assert verdict.wrong_ends([]) == [f"job {job.pk} (evaluate) is failed"]
    blows = [Hit(0.0, "worker", 1, 0.0, ((job.pk, attempt),)) for attempt in (1, 2, 3)]
    assert verdict.wrong_ends([], blows) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"from_state": "queued"}, "starting -> queued -> running"),
        ({"attempt": 0}, "written by attempt 0 after 1 had begun"),
        ({"seq": 9}, "follows"),
    ],
)
def test_it_finds_moves_that_no_table_lists(job: Job, change: dict[str, object], what: str) -> None:
    rewrite(JobEvent.objects.filter(job=job, event="progress"), **change)
    assert any(what in line for line in verdict.illegal_moves())


def test_it_finds_a_row_that_moved_without_a_word(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(state=State.FAILED)
    assert len(verdict.illegal_moves()) == 1


def test_it_finds_missing_adapters_and_missing_files(job: Job) -> None:
    (run,) = job.training_runs.all()
    assert verdict.adapter_faults() == [f"run {run.pk} (succeeded) has 0 adapters"]
    adapter = Adapter.objects.publish(run, "0" * 64, {WEIGHTS: "0" * 64}, 1)
    assert [line.split(":")[0] for line in verdict.adapter_faults()] == [f"adapter {adapter.pk}"]
    assert verdict.unscored() == [f"adapter {adapter.pk}"]


@pytest.mark.parametrize("name", [*verdict.EACH_STEP, verdict.HELD_OUT])
def test_it_finds_a_gap_in_any_curve(job: Job, name: str) -> None:
    (run,) = job.training_runs.all()
    draw(run, 10, spoilt=name, without=5)
    right = 10 + (name == verdict.HELD_OUT)
    assert verdict.curve_faults() == [
        f"run {run.pk}, {name}: {right - 1} points, right are {right}, missing [5]"
    ]


def test_it_finds_a_curve_that_was_never_drawn(job: Job) -> None:
    (run,) = job.training_runs.all()
    draw(run, 10)
    assert verdict.curve_faults() == []
    MetricSeries.objects.get(name=verdict.HELD_OUT).delete()
    assert len(verdict.curve_faults()) == 1


@pytest.mark.parametrize(("outcome", "faults"), [("cancelled", 0), ("succeeded", 1)])
def test_only_who_was_stopped_may_lack_its_last_held_out_loss(job: Job, outcome: str, faults: int) -> None:
    (run,) = job.training_runs.all()
    TrainingRun.objects.filter(pk=run.pk).update(outcome=outcome, ended_step=10)
    draw(run, 10, spoilt=verdict.HELD_OUT, without=10)
    assert len(verdict.curve_faults()) == faults


def test_held_out_losses_come_about_ten_times_and_at_the_end() -> None:
    assert verdict.held_out_steps(4) == [0, 1, 2, 3, 4]
    assert verdict.held_out_steps(25) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 25]


@pytest.mark.parametrize(("outcome", "is_whole"), [("stopped_early", True), ("succeeded", False)])
def test_it_finds_points_beyond_the_last_step(job: Job, outcome: str, is_whole: bool) -> None:
    (run,) = job.training_runs.all()
    TrainingRun.objects.filter(pk=run.pk).update(outcome=outcome, ended_step=8)
    draw(run, 10 if is_whole else 12)
    assert (verdict.curve_faults() == []) == is_whole


def test_it_finds_folders_that_nobody_reads(job: Job) -> None:
    job.checkpoint_folder().mkdir(parents=True)
    assert verdict.leftovers() == [f"checkpoints/job-{job.pk}"]
    job.checkpoint_folder().rmdir()
