"""Resume of a run of an ended study: the study reopens and gets a new verdict."""

from __future__ import annotations

import pytest
from django.test import Client

from dashboard.models import (
    BaseModel,
    ComputeBudget,
    Dataset,
    IllegalMove,
    Job,
    Project,
    State,
    Study,
    TrainingRun,
    User,
)
from dashboard.models.jobs.compute_budget import BudgetStatus, OverBudget
from dashboard.models.jobs.compute_use import HOUR
from tests.conftest import finish
from tests.dashboard.conftest import make_checkpoint
from tests.dashboard.studies.factories import Table, conclude, end_training, make_arms, make_study
from workers.contract.errors import SpecError

TABLE: Table = {name: {1: [0, 1, 1, 0]} for name in ("base", "efficient", "quality")}
RATES = [1e-4, 1e-3]


def fail_with_checkpoint(job: Job) -> None:
    """Fail the job as on a full disk, with a checkpoint."""
    make_checkpoint(job, step=4)
    finish(job, State.FAILED, error_code="disk_full", error_message="The disk is full.")


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Failed: two arms of one seed."""
    study = make_study(project, dataset, base_model, by=ed, seeds=[1])
    fail_with_checkpoint(study.jobs().get())
    study.advance()
    study.refresh_from_db()
    assert (study.state, study.is_over) == (State.FAILED, True)
    return study


@pytest.fixture
def searching(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Ended: one arm has its scores, the search of the other failed with a checkpoint."""
    # With DoRA each run has a job of its own.
    arms = make_arms("efficient", "quality", use_dora=True)
    study = make_study(
        project, dataset, base_model, by=ed, seeds=[1], learning_rates=RATES, arms=arms, reference="quality"
    )
    for job in study.jobs():
        arm = job.training_runs.get().study_arm
        assert arm
        if arm.name == "quality":
            end_training(job)
        else:
            fail_with_checkpoint(job)
    study.advance()
    study = conclude(study, TABLE)
    assert [arm.is_lost for arm in study.arms.order_by("name")] == [True, False]
    assert study.is_over
    return study


def run_of(study: Study, arm: str = "efficient") -> TrainingRun:
    return TrainingRun.objects.filter(study_arm__study=study, study_arm__name=arm).earliest("pk")


def fetched(study: Study) -> Study:
    return Study.objects.get(pk=study.pk)


def test_resumed_run_reopens_the_study(study: Study, ed: User) -> None:
    run_of(study).resume(ed)
    study = fetched(study)
    assert (study.state, study.is_over) == (State.RUNNING, False)
    study.advance()
    assert not fetched(study).is_over, "while its run waits"
    study = conclude(study, TABLE)
    assert study.state == State.SUCCEEDED
    assert [arm.name for arm in study.result.arms] == ["efficient", "quality"]


def test_api_shows_the_study_as_running(study: Study, api: Client) -> None:
    assert api.post(f"/api/v1/runs/{run_of(study).pk}/resume").status_code == 202
    assert api.get(f"/api/v1/studies/{study.pk}").json()["state"] == State.RUNNING


def test_second_failure_ends_the_study_again(study: Study, ed: User) -> None:
    run_of(study).resume(ed)
    finish(study.jobs().get(), State.FAILED, error_code="disk_full", error_message="The disk is full.")
    fetched(study).advance()
    assert (fetched(study).state, fetched(study).is_over) == (State.FAILED, True)


def test_resume_in_a_running_study_keeps_its_forecast(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = make_study(project, dataset, base_model, by=ed, seeds=[1, 2])
    first = study.jobs().earliest("pk")
    fail_with_checkpoint(first)
    study.advance()
    before = fetched(study).forecast_seconds
    run_of(study).resume(ed)
    assert fetched(study).forecast_seconds == before
    assert not first.events.filter(event="go_on").exists()


def test_resumed_search_trains_the_seeds(searching: Study, ed: User) -> None:
    for run in searching.runs().filter(outcome="failed"):
        run.resume(ed)
    study = fetched(searching)
    assert study.remaining_seconds > 0
    study = conclude(study, TABLE)
    assert study.state == State.SUCCEEDED
    assert [arm.name for arm in study.result.arms] == ["efficient", "quality"]
    assert study.remaining_seconds == 0


def test_budget_must_cover_the_runs_that_follow(searching: Study, project: Project, ed: User) -> None:
    run = run_of(searching)
    used = BudgetStatus.for_project(project).used
    # Enough for the run itself, and for nothing that comes after it.
    ComputeBudget.objects.change(project, (used + 1.01 * run.forecast["seconds"]["expected"]) / HOUR, None)
    with pytest.raises(OverBudget):
        run.resume(ed)
    assert fetched(searching).is_over
    assert run_of(searching).state == State.FAILED
    ComputeBudget.objects.change(project, (used + 2 * searching.whole_forecast) / HOUR, None)
    run_of(searching).resume(ed)
    reserved = BudgetStatus.for_project(project).reserved
    after = fetched(searching).remaining_seconds
    assert reserved == pytest.approx(run.forecast["seconds"]["expected"] + after)


def test_cancelling_study_refuses_resume(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = make_study(project, dataset, base_model, by=ed, seeds=[1, 2])
    failed, working = study.jobs().order_by("pk")
    fail_with_checkpoint(failed)
    working.move("claim", attempt=1, worker="w@host")
    study.request_cancel(ed)
    with pytest.raises(IllegalMove, match="being stopped"):
        run_of(study).resume(ed)
    working.move("stopped")
    fetched(study).advance()
    run_of(study).resume(ed)
    assert (fetched(study).state, fetched(study).cancelled_at) == (State.RUNNING, None)


def test_resume_is_refused_if_the_plan_is_outdated(
    study: Study, ed: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_study: Study, _key: str = "") -> None:
        raise SpecError("max_length", "This base model reads at most 8 tokens.")

    monkeypatch.setattr("dashboard.models.studies.study.queue_next", refuse)
    with pytest.raises(IllegalMove, match="cannot go on: This base model reads"):
        run_of(study).resume(ed)
    assert fetched(study).is_over
    assert run_of(study).state == State.FAILED
