"""A project's month: which time of devices counts as used, what is promised, and how hours are said."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from dashboard.models import (
    BaseModel,
    Dataset,
    Evaluation,
    Job,
    JobEvent,
    MetricSeries,
    Project,
    State,
    Study,
    TrainingRun,
    User,
)
from dashboard.models.jobs.compute_budget import BudgetStatus, monthly_usage
from dashboard.models.jobs.compute_use import HOUR, Month, by_person, device_usage, format_hours, unit_label
from dashboard.models.jobs.worker_node import WorkerNode
from tests.conftest import finish, make_run, rewrite
from tests.dashboard.computing import expect, held
from tests.dashboard.conftest import publish
from tests.dashboard.studies.factories import Table, conclude, end_training, make_study


def used(project: Project) -> float:
    return BudgetStatus.for_project(project).used


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
    rewrite(JobEvent.objects.all(), created_at=begin)
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
            rewrite(JobEvent.objects.filter(pk=pk), created_at=begin + timedelta(seconds=after))
    assert used(project) == pytest.approx(300)


def test_it_counts_what_still_works_up_to_now(run: TrainingRun, project: Project) -> None:
    assert run.job is not None
    run.job.move("claim", attempt=1)
    rewrite(JobEvent.objects.filter(event="claim"), created_at=timezone.now() - timedelta(seconds=40))
    assert 39 < used(project) < 60 or Month.present().begin > timezone.now() - timedelta(seconds=60)


def test_what_went_on_over_the_turn_of_the_month_is_split(run: TrainingRun, project: Project) -> None:
    assert run.job is not None
    begin = Month.present().begin
    held(finish(run.job), begin - timedelta(minutes=30), 3600)
    (_month, now, _limit), (_before, before, _no_limit), *_rest = monthly_usage(project)
    assert (now, before) == (pytest.approx(1800), pytest.approx(1800))


def test_it_says_who_used_it(run: TrainingRun, project: Project, ed: User) -> None:
    assert run.job is not None
    held(finish(run.job), Month.present().begin, 1800)
    month = Month.present()
    assert by_person(device_usage(project, month.begin), month) == [(ed.pk, pytest.approx(1800))]


def test_it_counts_nothing_of_another_project(run: TrainingRun, other_project: Project) -> None:
    assert run.job is not None
    held(finish(run.job), Month.present().begin, 1800)
    assert BudgetStatus.for_project(other_project).used == 0
    assert monthly_usage(other_project)[0][1] == 0


# Promised


def test_a_run_that_waits_is_promised_its_forecast(run: TrainingRun, project: Project) -> None:
    expect(run, 600)
    assert BudgetStatus.for_project(project).promised == 600


def test_a_run_that_works_is_promised_what_is_left_of_it(run: TrainingRun, project: Project) -> None:
    expect(run, 600)
    assert run.job is not None
    run.job.move("claim", attempt=1)
    assert BudgetStatus.for_project(project).promised == 600
    MetricSeries.objects.append(run, "train/loss", [(step, 1.0) for step in range(1, 5)])
    assert BudgetStatus.for_project(project).promised == pytest.approx(360)


def test_a_run_that_has_ended_is_promised_nothing(run: TrainingRun, project: Project) -> None:
    assert run.job is not None
    run.job.request_cancel()
    assert BudgetStatus.for_project(project).promised == 0


def test_a_study_is_promised_the_runs_that_it_has_not_queued_yet(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, learning_rates=[1e-4, 2e-4, 4e-4])
    queued = sum(run.seconds_left for run in study.runs())
    assert study.runs().filter(rung=None).count() == 0
    assert 0 < queued < study.forecast_seconds
    assert BudgetStatus.for_project(project).promised == pytest.approx(study.whole_forecast)
    study.request_cancel()
    assert BudgetStatus.for_project(project).promised == 0


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
    # Half of the adapters are scored now.
    scoring = (study.whole_forecast - study.forecast_seconds) / 2
    assert BudgetStatus.for_project(project).promised == pytest.approx(
        sum(run.seconds_left for run in waiting) + scoring
    )


def test_what_an_ended_study_has_never_queued_is_promised_no_more(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    scores: Table = {name: {1: [0, 1]} for name in ("base", "efficient", "quality")}
    study = conclude(make_study(project, dataset, base_model, seeds=[1], learning_rates=[1e-4, 2e-4]), scores)
    Study.objects.update(forecast_seconds=10**6)
    study.add_seeds([2])
    assert 0 < BudgetStatus.for_project(project).promised < 10**5


def test_many_open_studies_cost_no_more_queries(
    project: Project, dataset: Dataset, base_model: BaseModel, django_assert_max_num_queries: object
) -> None:
    for _study in range(4):
        make_study(project, dataset, base_model)
    with django_assert_max_num_queries(8):  # type: ignore[operator]
        assert BudgetStatus.for_project(project).promised > 0


def test_many_waiting_runs_cost_no_more_queries(
    project: Project, dataset: Dataset, base_model: BaseModel, django_assert_max_num_queries: object
) -> None:
    for number in range(6):
        make_run(project, dataset, base_model, name=f"Run {number}")
    with django_assert_max_num_queries(5):  # type: ignore[operator]
        BudgetStatus.for_project(project)


# Words


def test_hours_are_said_as_people_say_them() -> None:
    seconds = (0, 10, 1500, 4000, 20 * HOUR, 20.5 * HOUR, 12_345 * HOUR)
    assert [format_hours(one) for one in seconds] == [
        "0 h", "less than 0.01 h", "0.42 h", "1.1 h", "20 h", "20.5 h", "12,345 h"
    ]  # fmt: skip


def test_an_hour_is_one_of_a_gpu_only_where_every_device_is_one(db: None) -> None:
    assert unit_label() == "Compute hours"
    node = {"queue": "gpu", "host": "here", "pid": 1}
    WorkerNode.objects.create(name="gpu0@here", device="NVIDIA H100", **node)
    assert unit_label() == "GPU-hours"
    WorkerNode.objects.create(name="gpu1@here", device="CPU, 8 cores", **node)
    assert unit_label() == "Compute hours"
