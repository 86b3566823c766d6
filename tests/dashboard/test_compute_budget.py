"""A project's month: what is used, what is promised, and what a budget keeps out."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta

import pytest
from django.conf import settings
from django.db.models.functions import Now
from django.utils import timezone

from dashboard.models import (
    BaseModel,
    ComputeBudget,
    Dataset,
    Evaluation,
    Job,
    JobEvent,
    MetricSeries,
    OverBudget,
    Project,
    State,
    Study,
    TrainingRun,
    User,
)
from dashboard.models.compute_budget import Standing, months_of
from dashboard.models.compute_use import HOUR, Month, by_person, holds, in_hours, unit_words
from dashboard.models.worker_node import WorkerNode
from tests.conftest import finish, make_run, shared_environment
from tests.dashboard.conftest import make_checkpoint, publish
from tests.dashboard.studies import Table, conclude, end_training, make_arms, make_study


def expect(run: TrainingRun, seconds: float) -> TrainingRun:
    """The run with a forecast of so many seconds."""
    run.forecast = {**run.forecast, "seconds": {"expected": seconds, "low": seconds, "high": seconds}}
    run.save(update_fields=["forecast"])
    return run


def held(job: Job | None, begin: datetime, seconds: float) -> None:
    """Let the ended job's only attempt have held its worker from `begin` on."""
    assert job is not None
    events = JobEvent.objects.filter(job=job)
    events.filter(event="claim").update(created_at=begin)
    end = begin + timedelta(seconds=seconds)
    events.filter(event__in=["succeed", "fail", "stopped"]).update(created_at=end)
    Job.objects.filter(pk=job.pk).update(finished_at=end)


def used(project: Project) -> float:
    return Standing.of(project).used


# Used


def test_it_counts_the_time_for_which_a_worker_held_a_training(run: TrainingRun, project: Project) -> None:
    assert run.job is not None
    held(finish(run.job), Month.present().begin, 1800)
    assert used(project) == pytest.approx(1800)


def test_it_counts_what_failed_as_well(run: TrainingRun, project: Project) -> None:
    assert run.job is not None
    held(finish(run.job, State.FAILED), Month.present().begin, 60)
    assert used(project) == pytest.approx(60)


def test_it_counts_evaluations_and_nothing_that_needs_no_device(run: TrainingRun, project: Project) -> None:
    adapter = publish(run)
    job = finish(Evaluation.objects.submit(adapter, None))
    begin = Month.present().begin
    JobEvent.objects.update(created_at=begin)
    Job.objects.update(finished_at=begin)
    held(job, begin, 90)
    assert used(project) == pytest.approx(90)


def test_it_counts_each_attempt_and_not_the_wait_between_them(run: TrainingRun, project: Project) -> None:
    job = run.job
    assert job is not None
    job.move("claim", attempt=1)
    job.interrupt("The worker was stopped", fenced=False)
    job.move("requeue", run_after=Now())
    job.move("claim", attempt=2)
    job.move("progress")
    job.move("work_done")
    job.move("succeed")
    begin = Month.present().begin
    # claimed, given up, queued, claimed, and three more moves until the end
    moments = {"claim": (0, 500), "interrupt": (100,), "succeed": (700,)}
    for event, seconds in moments.items():
        rows = JobEvent.objects.filter(job=job, event=event).order_by("seq").values_list("pk", flat=True)
        for pk, after in zip(list(rows), seconds, strict=True):
            JobEvent.objects.filter(pk=pk).update(created_at=begin + timedelta(seconds=after))
    assert used(project) == pytest.approx(300)


def test_it_counts_what_still_works_up_to_now(run: TrainingRun, project: Project) -> None:
    assert run.job is not None
    run.job.move("claim", attempt=1)
    JobEvent.objects.filter(event="claim").update(created_at=timezone.now() - timedelta(seconds=40))
    assert 39 < used(project) < 60 or Month.present().begin > timezone.now() - timedelta(seconds=60)


def test_what_went_on_over_the_turn_of_the_month_is_split(run: TrainingRun, project: Project) -> None:
    assert run.job is not None
    begin = Month.present().begin
    held(finish(run.job), begin - timedelta(minutes=30), 3600)
    (_month, now, _limit), (_before, before, _no_limit), *_rest = months_of(project)
    assert (now, before) == (pytest.approx(1800), pytest.approx(1800))


def test_it_says_who_used_it(run: TrainingRun, project: Project, ed: User) -> None:
    assert run.job is not None
    held(finish(run.job), Month.present().begin, 1800)
    month = Month.present()
    assert by_person(holds(project, month.begin), month) == [(ed.pk, pytest.approx(1800))]


def test_it_counts_nothing_of_another_project(run: TrainingRun, other_project: Project) -> None:
    assert run.job is not None
    held(finish(run.job), Month.present().begin, 1800)
    assert Standing.of(other_project).used == 0
    assert months_of(other_project)[0][1] == 0


# Promised


def test_a_run_that_waits_is_promised_its_forecast(run: TrainingRun, project: Project) -> None:
    expect(run, 600)
    assert Standing.of(project).promised == 600


def test_a_run_that_works_is_promised_what_is_left_of_it(run: TrainingRun, project: Project) -> None:
    expect(run, 600)
    assert run.job is not None
    run.job.move("claim", attempt=1)
    assert Standing.of(project).promised == 600
    MetricSeries.objects.append(run, "train/loss", [(step, 1.0) for step in range(1, 5)])
    assert Standing.of(project).promised == pytest.approx(360)


def test_a_run_that_has_ended_is_promised_nothing(run: TrainingRun, project: Project) -> None:
    assert run.job is not None
    run.job.request_cancel()
    assert Standing.of(project).promised == 0


def test_a_study_is_promised_the_runs_that_it_has_not_queued_yet(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, learning_rates=[1e-4, 2e-4, 4e-4])
    queued = sum(run.seconds_left for run in study.runs())
    assert study.runs().filter(rung=None).count() == 0
    assert 0 < queued < study.forecast_seconds
    assert Standing.of(project).promised == pytest.approx(study.forecast_seconds)
    study.request_cancel()
    assert Standing.of(project).promised == 0


def test_trying_learning_rates_is_promised_too(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    plain = make_study(project, dataset, base_model, seeds=[1])
    search = make_study(project, dataset, base_model, seeds=[1], learning_rates=[1e-4, 2e-4, 4e-4, 8e-4])
    # Four rates at a quarter of the steps, then two at half of them, then the whole training.
    assert search.forecast_seconds == pytest.approx(3 * plain.forecast_seconds)


def test_an_arm_that_was_lost_in_the_search_is_promised_nothing_more(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, learning_rates=[1e-4, 2e-4])
    search = study.jobs().get()
    for run in search.training_runs.filter(study_arm__name="efficient"):
        run.end("failed", step=1, code="diverged", message="Lost.")
    end_training(search)
    study.advance()
    waiting = study.runs().filter(rung=None)
    assert {str(run.study_arm) for run in waiting} == {"quality"}
    assert Standing.of(project).promised == pytest.approx(sum(run.seconds_left for run in waiting))


def test_what_an_ended_study_has_never_queued_is_promised_no_more(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    scores: Table = {name: {1: [0, 1]} for name in ("base", "efficient", "quality")}
    study = conclude(make_study(project, dataset, base_model, seeds=[1], learning_rates=[1e-4, 2e-4]), scores)
    Study.objects.update(forecast_seconds=10**6)
    study.add_arms(make_arms("mlp"))
    assert 0 < Standing.of(project).promised < 10**5


def test_many_open_studies_cost_no_more_queries(
    project: Project, dataset: Dataset, base_model: BaseModel, django_assert_max_num_queries: object
) -> None:
    for _study in range(4):
        make_study(project, dataset, base_model)
    with django_assert_max_num_queries(7):  # type: ignore[operator]
        assert Standing.of(project).promised > 0


def test_many_waiting_runs_cost_no_more_queries(
    project: Project, dataset: Dataset, base_model: BaseModel, django_assert_max_num_queries: object
) -> None:
    for number in range(6):
        make_run(project, dataset, base_model, name=f"Run {number}")
    with django_assert_max_num_queries(5):  # type: ignore[operator]
        Standing.of(project)


# The budget


def test_without_a_budget_everything_may_start(run: TrainingRun, project: Project) -> None:
    standing = Standing.of(project)
    assert standing.left is None
    assert standing.has_room_for(10**9)


def test_a_run_beyond_the_budget_is_refused_and_leaves_nothing(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User, mara: User
) -> None:
    ComputeBudget.objects.change(project, 0, mara)
    with pytest.raises(OverBudget) as refused:
        make_run(project, dataset, base_model, by=ed)
    assert "0 h are left" in str(refused.value)
    assert "mara@example.org can raise the budget" in str(refused.value)
    assert not TrainingRun.objects.exists()
    assert not Job.objects.filter(kind="train").exists()


def test_a_manager_is_told_where_to_raise_it(
    project: Project, dataset: Dataset, base_model: BaseModel, mara: User
) -> None:
    ComputeBudget.objects.change(project, 0, mara)
    with pytest.raises(OverBudget, match="You can raise the budget under Settings, Compute budget"):
        make_run(project, dataset, base_model, by=mara)


def test_what_is_used_and_what_is_promised_both_count(
    project: Project, dataset: Dataset, base_model: BaseModel, run: TrainingRun, mara: User
) -> None:
    assert run.job is not None
    held(finish(run.job), Month.present().begin, 1800)
    run.end("succeeded", step=10)
    waiting = expect(make_run(project, dataset, base_model), 1700)
    ComputeBudget.objects.change(project, 1, mara)
    assert Standing.of(project).left == pytest.approx(100)
    with pytest.raises(OverBudget, match=r"0\.03 h are left.*0\.50 h are used, and 0\.47 h are promised"):
        # Longer than what is left, whatever this machine is taken for.
        make_run(project, dataset, base_model, max_steps=100_000)
    waiting.refresh_from_db()
    assert waiting.state == State.QUEUED


def test_a_run_that_fits_is_let_in(
    project: Project, dataset: Dataset, base_model: BaseModel, mara: User
) -> None:
    ComputeBudget.objects.change(project, 10, mara)
    assert make_run(project, dataset, base_model).state == State.QUEUED


def test_last_months_use_counts_no_more(
    project: Project, dataset: Dataset, base_model: BaseModel, run: TrainingRun, mara: User
) -> None:
    assert run.job is not None
    held(finish(run.job), Month.present().before.begin, 50 * HOUR)
    run.end("succeeded", step=10)
    ComputeBudget.objects.change(project, 10, mara)
    assert make_run(project, dataset, base_model).state == State.QUEUED


def test_a_whole_study_must_fit(
    project: Project, dataset: Dataset, base_model: BaseModel, mara: User
) -> None:
    seed = make_study(project, dataset, base_model, seeds=[1])
    assert seed.request_cancel()
    one = seed.forecast_seconds / HOUR
    ComputeBudget.objects.change(project, 2.5 * one, mara)
    with pytest.raises(OverBudget):
        make_study(project, dataset, base_model, seeds=[1, 2, 3])
    assert Study.objects.count() == 1
    make_study(project, dataset, base_model, seeds=[1, 2])


def test_a_study_that_was_let_in_goes_on_when_the_budget_is_lowered(
    project: Project, dataset: Dataset, base_model: BaseModel, mara: User
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1], learning_rates=[1e-4, 2e-4])
    ComputeBudget.objects.change(project, 0, mara)
    first = study.jobs().get()
    for run in first.training_runs.all():
        run.end("succeeded", step=5, measured={"validation_loss": 1.0})
    finish(first)
    study.advance()
    assert study.runs().filter(rung=None).count() == 2
    assert study.cancelled_at is None


def test_more_seeds_must_fit_too(
    project: Project, dataset: Dataset, base_model: BaseModel, mara: User
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1])
    ComputeBudget.objects.change(project, 2.5 * study.forecast_seconds / HOUR, mara)
    with pytest.raises(OverBudget):
        study.add_seeds([2, 3])
    assert Study.objects.get().seeds == [1]
    study = Study.objects.get()
    study.add_seeds([2])
    assert Study.objects.get().seeds == [1, 2]


def test_more_seeds_must_fit_while_learning_rates_are_still_looked_for(
    project: Project, dataset: Dataset, base_model: BaseModel, mara: User
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1], learning_rates=[1e-4, 2e-4])
    # Two rates at half of the steps, then the whole training.
    whole, one = study.forecast_seconds, study.forecast_seconds / 2
    assert not study.runs().filter(rung=None).exists()
    ComputeBudget.objects.change(project, (whole + 0.5 * one) / HOUR, mara)
    with pytest.raises(OverBudget):
        study.add_seeds([2])
    assert Study.objects.get().seeds == [1]
    ComputeBudget.objects.change(project, (whole + 1.5 * one) / HOUR, mara)
    study.add_seeds([2])
    assert Study.objects.get().seeds == [1, 2]
    assert Standing.of(project).promised == pytest.approx(whole + one)


def test_resuming_must_fit_what_is_left_of_the_run(run: TrainingRun, project: Project, mara: User) -> None:
    assert run.job is not None
    expect(run, 600)
    run.job.move("claim", attempt=1)
    run.job.move("progress")
    MetricSeries.objects.append(run, "train/loss", [(step, 1.0) for step in range(1, 6)])
    make_checkpoint(run.job, step=5)
    run.job.request_cancel(keep="checkpoint")
    run.job.move("stopped")
    run.refresh_from_db()
    ComputeBudget.objects.change(project, 200 / HOUR, mara)
    with pytest.raises(OverBudget, match=r"This needs about 0\.08 h"):
        run.resume(mara)
    assert TrainingRun.objects.get().state == State.CANCELLED
    ComputeBudget.objects.change(project, 400 / HOUR, mara)
    TrainingRun.objects.get().resume(mara)
    assert TrainingRun.objects.get().state == State.QUEUED


def test_the_budget_of_a_month_stays_in_its_history(project: Project, mara: User) -> None:
    ComputeBudget.objects.change(project, 5, mara)
    ComputeBudget.objects.update(created_at=Month.present().before.begin)
    ComputeBudget.objects.change(project, 8, mara)
    limits = [limit and limit / HOUR for _month, _used, limit in months_of(project)[:3]]
    assert limits == [8, 5, None]


def test_setting_the_same_budget_again_changes_nothing(project: Project, mara: User) -> None:
    assert ComputeBudget.objects.change(project, 5, mara)
    assert not ComputeBudget.objects.change(project, 5, mara)
    assert ComputeBudget.objects.change(project, None, mara)
    assert ComputeBudget.objects.hours_of(project) is None


# At the same moment

RACE = """
import json, multiprocessing, sys
import django
django.setup()
from dashboard.models import *
from workers.specs import Hyperparameters

def launch(number, begin, found):
    project = Project.objects.get(name="Support")
    choice = dict(
        project=project, by=None, name=f"Run {number}", dataset_version=DatasetVersion.objects.get(),
        base_model=BaseModel.objects.get(project=project),
        target_module_config=TargetModuleConfig.objects.get(slug="efficient"),
        hyperparameters=Hyperparameters(r=4, max_steps=10, max_length=64))
    begin.wait()
    try:
        TrainingRun.objects.launch(**choice)
        found.put("let in")
    except OverBudget:
        found.put("refused")

fork = multiprocessing.get_context("fork")
racers = int(sys.argv[1])
begin, found = fork.Barrier(racers), fork.Queue()
children = [fork.Process(target=launch, args=(n, begin, found)) for n in range(racers)]
for child in children:
    child.start()
print(json.dumps([found.get(timeout=120) for _child in children]))
for child in children:
    child.join()
sys.exit(max(child.exitcode for child in children))
"""


@pytest.mark.django_db(transaction=True)
def test_those_who_launch_at_one_moment_cannot_all_take_the_last_hour(
    project: Project, dataset: Dataset, base_model: BaseModel, mara: User
) -> None:
    first = make_run(project, dataset, base_model)
    one = first.seconds_left
    # Room for the first and two more of the same kind.
    ComputeBudget.objects.change(project, 3.5 * one / HOUR, mara)
    raced = subprocess.run(
        [sys.executable, "-c", RACE, "6"],
        env=shared_environment(),
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert raced.returncode == 0, raced.stderr[-3000:]
    assert sorted(json.loads(raced.stdout)) == ["let in"] * 2 + ["refused"] * 4
    assert TrainingRun.objects.count() == 3


# Words


def test_hours_are_said_as_people_say_them() -> None:
    seconds = (0, 10, 1500, 4000, 20 * HOUR, 20.5 * HOUR, 12_345 * HOUR)
    assert [in_hours(one) for one in seconds] == [
        "0 h", "less than 0.01 h", "0.42 h", "1.1 h", "20 h", "20.5 h", "12,345 h"
    ]  # fmt: skip


def test_an_hour_is_one_of_a_gpu_only_where_every_device_is_one(db: None) -> None:
    assert unit_words() == "Compute hours"
    node = {"queue": "gpu", "host": "here", "pid": 1}
    WorkerNode.objects.create(name="gpu0@here", device="NVIDIA H100", **node)
    assert unit_words() == "GPU-hours"
    WorkerNode.objects.create(name="gpu1@here", device="CPU, 8 cores", **node)
    assert unit_words() == "Compute hours"
