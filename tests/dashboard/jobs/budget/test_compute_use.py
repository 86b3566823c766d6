"""Device hours of a project: used, reserved, and formatted."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db.models.functions import Now
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

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
from dashboard.models.jobs.compute_use import (
    HOUR,
    Month,
    format_hours,
    unit_label,
)
from dashboard.models.jobs.device_day import DeviceDay, usage_by_user
from dashboard.models.jobs.worker_node import WorkerNode
from dashboard.models.studies.added_seeds import add_seeds
from tests.conftest import finish, make_run, rewrite
from tests.dashboard.conftest import publish
from tests.dashboard.durations import expect, held
from tests.dashboard.studies.factories import Table, conclude, end_training, make_study


def used(project: Project) -> float:
    return BudgetStatus.for_project(project).used


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED])
def test_the_time_of_a_training_counts(run: TrainingRun, project: Project, ed: User, state: State) -> None:
    month = Month.current()
    held(finish(run.job, state), month.begin, 1800)
    assert used(project) == pytest.approx(1800)
    days = DeviceDay.objects.since(project, month.begin)
    assert usage_by_user(days) == [(ed.pk, pytest.approx(1800))]


def test_evaluations_count_and_imports_do_not(run: TrainingRun, project: Project) -> None:
    adapter = publish(run)
    job = finish(Evaluation.objects.submit(adapter, None))
    begin = Month.current().begin
    rewrite(JobEvent.objects.all(), created_at=begin)
    Job.objects.update(finished_at=begin)
    held(job, begin, 90)
    assert used(project) == pytest.approx(90)


def test_all_attempts_count_without_the_wait_between_them(run: TrainingRun, project: Project) -> None:
    job = run.job
    assert job is not None
    job.move("claim", attempt=1)
    job.interrupt("The worker was stopped", fenced=False)
    job.move("requeue", run_after=Now())
    job.move("claim", attempt=2)
    job.move("progress")
    job.move("work_done")
    job.move("succeed")
    begin = Month.current().begin
    moments = {"claim": (0, 500), "interrupt": (100,), "succeed": (700,)}
    for event, seconds in moments.items():
        rows = JobEvent.objects.filter(job=job, event=event).order_by("seq").values_list("pk", flat=True)
        for pk, after in zip(list(rows), seconds, strict=True):
            rewrite(JobEvent.objects.filter(pk=pk), created_at=begin + timedelta(seconds=after))
    assert used(project) == pytest.approx(300)


def test_a_running_job_counts_up_to_now(run: TrainingRun, project: Project) -> None:
    assert run.job is not None
    run.job.move("claim", attempt=1)
    rewrite(JobEvent.objects.filter(event="claim"), created_at=timezone.now() - timedelta(seconds=40))
    assert 39 < used(project) < 60 or Month.current().begin > timezone.now() - timedelta(seconds=60)


def test_a_job_that_ends_again_counts_both_attempts(run: TrainingRun, project: Project) -> None:
    job = run.job
    assert job is not None
    held(finish(job, State.FAILED), Month.current().begin, 60)
    assert used(project) == pytest.approx(60)
    Job.objects.filter(pk=job.pk).update(state=State.RUNNING, attempt=2, finished_at=None)
    begun = timezone.now() - timedelta(seconds=40)
    JobEvent.objects.create(
        job=job, attempt=2, seq=99, event="claim", from_state="queued", to_state="starting", created_at=begun
    )
    assert used(project) == pytest.approx(100, abs=3)
    job.move("fail", error_code="bad_data")
    assert used(project) == pytest.approx(100, abs=3)


def test_usage_across_the_end_of_a_month_is_split(run: TrainingRun, project: Project) -> None:
    assert run.job is not None
    begin = Month.current().begin
    held(finish(run.job), begin - timedelta(minutes=30), 3600)
    (_month, now, _limit), (_before, before, _no_limit), *_rest = monthly_usage(project)
    assert (now, before) == (pytest.approx(1800), pytest.approx(1800))


def test_usage_of_other_projects_does_not_count(run: TrainingRun, other_project: Project) -> None:
    assert run.job is not None
    held(finish(run.job), Month.current().begin, 1800)
    assert BudgetStatus.for_project(other_project).used == 0
    assert monthly_usage(other_project)[0][1] == 0


def test_a_run_reserves_what_is_left_of_its_forecast(run: TrainingRun, project: Project) -> None:
    expect(run, 600)
    assert BudgetStatus.for_project(project).reserved == 600
    assert run.job is not None
    run.job.move("claim", attempt=1)
    assert BudgetStatus.for_project(project).reserved == 600
    MetricSeries.objects.append(run, "train/loss", [(step, 1.0) for step in range(1, 5)])
    assert BudgetStatus.for_project(project).reserved == pytest.approx(360)
    run.end("cancelled", step=4)
    assert BudgetStatus.for_project(project).reserved == 0


def test_a_study_reserves_the_runs_that_it_will_queue(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, learning_rates=[1e-4, 2e-4, 4e-4])
    queued = sum(run.seconds_left for run in study.runs())
    assert study.runs().filter(rung=None).count() == 0
    assert 0 < queued < study.forecast_seconds
    assert BudgetStatus.for_project(project).reserved == pytest.approx(study.whole_forecast)
    study.request_cancel()
    assert BudgetStatus.for_project(project).reserved == 0


def test_the_learning_rate_search_is_reserved(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    plain = make_study(project, dataset, base_model, seeds=[1])
    search = make_study(project, dataset, base_model, seeds=[1], learning_rates=[1e-4, 2e-4, 4e-4, 8e-4])
    # Four rates at a quarter of the steps, then two at half of them, then the whole training.
    assert search.forecast_seconds == pytest.approx(3 * plain.forecast_seconds)


def test_an_arm_that_failed_in_the_search_reserves_nothing(
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
    assert BudgetStatus.for_project(project).reserved == pytest.approx(
        sum(run.seconds_left for run in waiting) + scoring
    )


def test_seeds_added_to_an_ended_study_reserve_only_themselves(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    scores: Table = {name: {1: [0, 1]} for name in ("base", "efficient", "quality")}
    study = conclude(make_study(project, dataset, base_model, seeds=[1], learning_rates=[1e-4, 2e-4]), scores)
    Study.objects.update(forecast_seconds=10**6)
    add_seeds(study, [2])
    assert 0 < BudgetStatus.for_project(project).reserved < 10**5


def test_queries_do_not_grow_with_runs_and_studies(
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    for number in range(4):
        make_study(project, dataset, base_model)
        make_run(project, dataset, base_model, name=f"Run {number}")
    # The first call stores the days that are over.
    BudgetStatus.for_project(project)
    with django_assert_max_num_queries(9):
        assert BudgetStatus.for_project(project).reserved > 0


def test_hours_are_rounded_for_display() -> None:
    seconds = (0, 10, 1500, 4000, 20 * HOUR, 20.5 * HOUR, 12_345 * HOUR)
    assert [format_hours(one) for one in seconds] == [
        "0 h", "less than 0.01 h", "0.42 h", "1.1 h", "20 h", "20.5 h", "12,345 h"
    ]  # fmt: skip


def test_the_unit_is_gpu_hours_if_every_device_is_a_gpu(db: None) -> None:
    assert unit_label() == "Compute hours"
    node = {"queue": "gpu", "host": "here", "pid": 1}
    WorkerNode.objects.create(name="gpu0@here", device="NVIDIA H100", **node)
    assert unit_label() == "GPU-hours"
    WorkerNode.objects.create(name="gpu1@here", device="CPU, 8 cores", **node)
    assert unit_label() == "Compute hours"
