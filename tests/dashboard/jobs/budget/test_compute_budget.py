"""The compute budget: the work that it accepts and refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from django.conf import settings

from dashboard.models import (
    BaseModel,
    ComputeBudget,
    Dataset,
    Job,
    MetricSeries,
    OverBudget,
    Project,
    State,
    Study,
    TrainingRun,
    User,
)
from dashboard.models.jobs.compute_budget import BudgetStatus, monthly_usage
from dashboard.models.jobs.compute_use import HOUR, Month
from dashboard.models.studies.added_seeds import add_seeds
from tests.conftest import finish, make_run, shared_environment
from tests.dashboard.conftest import make_checkpoint
from tests.dashboard.durations import expect, held
from tests.dashboard.studies.factories import make_study


def test_without_a_limit_any_work_is_covered(run: TrainingRun, project: Project) -> None:
    status = BudgetStatus.for_project(project)
    assert status.left is None
    assert status.covers(10**9)


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


def test_a_manager_learns_where_to_raise_the_budget(
    project: Project, dataset: Dataset, base_model: BaseModel, mara: User
) -> None:
    ComputeBudget.objects.change(project, 0, mara)
    with pytest.raises(OverBudget, match="You can raise the budget under Settings, Compute budget"):
        make_run(project, dataset, base_model, by=mara)


def test_used_and_reserved_hours_both_count(
    project: Project, dataset: Dataset, base_model: BaseModel, run: TrainingRun, mara: User
) -> None:
    assert run.job is not None
    held(finish(run.job), Month.current().begin, 1800)
    run.end("succeeded", step=10)
    waiting = expect(make_run(project, dataset, base_model), 1700)
    ComputeBudget.objects.change(project, 1, mara)
    assert BudgetStatus.for_project(project).left == pytest.approx(100)
    with pytest.raises(OverBudget, match=r"0\.03 h are left.*0\.50 h are used, and 0\.47 h are reserved"):
        # Exceeds what is left on any device.
        make_run(project, dataset, base_model, max_steps=100_000)
    waiting.refresh_from_db()
    assert waiting.state == State.QUEUED


def test_usage_of_last_month_does_not_count(
    project: Project, dataset: Dataset, base_model: BaseModel, run: TrainingRun, mara: User
) -> None:
    assert run.job is not None
    held(finish(run.job), Month.current().previous.begin, 50 * HOUR)
    run.end("succeeded", step=10)
    ComputeBudget.objects.change(project, 10, mara)
    assert make_run(project, dataset, base_model).state == State.QUEUED


def test_all_runs_of_a_study_must_fit(
    project: Project, dataset: Dataset, base_model: BaseModel, mara: User
) -> None:
    seed = make_study(project, dataset, base_model, seeds=[1])
    assert seed.request_cancel()
    one = seed.whole_forecast / HOUR
    ComputeBudget.objects.change(project, 2.5 * one, mara)
    with pytest.raises(OverBudget):
        make_study(project, dataset, base_model, seeds=[1, 2, 3])
    assert Study.objects.count() == 1
    make_study(project, dataset, base_model, seeds=[1, 2])


def test_an_accepted_study_continues_after_the_budget_is_lowered(
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


def test_added_seeds_must_fit(project: Project, dataset: Dataset, base_model: BaseModel, mara: User) -> None:
    study = make_study(project, dataset, base_model, seeds=[1])
    ComputeBudget.objects.change(project, 2.5 * study.whole_forecast / HOUR, mara)
    with pytest.raises(OverBudget):
        add_seeds(study, [2, 3])
    assert Study.objects.get().seeds == [1]
    study = Study.objects.get()
    add_seeds(study, [2])
    assert Study.objects.get().seeds == [1, 2]


def test_added_seeds_must_fit_during_the_learning_rate_search(
    project: Project, dataset: Dataset, base_model: BaseModel, mara: User
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1], learning_rates=[1e-4, 2e-4])
    # Two rates at half of the steps, then the whole training.
    whole, one = study.whole_forecast, study.forecast_seconds / 2
    assert not study.runs().filter(rung=None).exists()
    ComputeBudget.objects.change(project, (whole + 0.5 * one) / HOUR, mara)
    with pytest.raises(OverBudget):
        add_seeds(study, [2])
    assert Study.objects.get().seeds == [1]
    ComputeBudget.objects.change(project, 2 * whole / HOUR, mara)
    add_seeds(study, [2])
    grown = Study.objects.get()
    assert grown.seeds == [1, 2]
    assert grown.forecast_seconds == pytest.approx(3 * one)
    assert BudgetStatus.for_project(project).reserved == pytest.approx(grown.whole_forecast)


def test_the_rest_of_a_resumed_run_must_fit(run: TrainingRun, project: Project, mara: User) -> None:
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


def test_each_month_has_the_limit_at_its_end(project: Project, mara: User) -> None:
    ComputeBudget.objects.change(project, 5, mara)
    ComputeBudget.objects.update(created_at=Month.current().previous.begin)
    ComputeBudget.objects.change(project, 8, mara)
    limits = [limit and limit / HOUR for _month, _used, limit in monthly_usage(project)[:3]]
    assert limits == [8, 5, None]


def test_setting_the_same_limit_adds_no_row(project: Project, mara: User) -> None:
    assert ComputeBudget.objects.change(project, 5, mara)
    assert not ComputeBudget.objects.change(project, 5, mara)
    assert ComputeBudget.objects.change(project, None, mara)
    assert ComputeBudget.objects.hours_of(project) is None


RACE = """
import json, multiprocessing, sys
import django
django.setup()
from dashboard.models import *
from workers.contract.hyperparameters import Hyperparameters

def launch(number, begin, found):
    project = Project.objects.get(name="Support")
    run = TrainingRun(
        project=project, name=f"Run {number}", dataset_version=DatasetVersion.objects.get(),
        base_model=BaseModel.objects.get(project=project),
        target_module_config=TargetModuleConfig.objects.get(slug="efficient"))
    run.freeze(Hyperparameters(r=4, max_steps=10, max_length=64))
    begin.wait()
    try:
        run.launch()
        found.put("accepted")
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
def test_concurrent_launches_cannot_exceed_the_budget(
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
    assert sorted(json.loads(raced.stdout)) == ["accepted"] * 2 + ["refused"] * 4
    assert TrainingRun.objects.count() == 3
