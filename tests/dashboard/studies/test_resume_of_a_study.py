"""Continuing a run of a study after the study has ended: it goes on, and is judged once more."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

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


def fail(job: Job) -> None:
    """As on a full disk: the last good checkpoint stays."""
    make_checkpoint(job, step=4)
    finish(job, State.FAILED, error_code="disk_full", error_message="The disk is full.")


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Two arms of one seed that failed together, and so did the study."""
    study = make_study(project, dataset, base_model, by=ed, seeds=[1])
    fail(study.jobs().get())
    study.advance()
    study.refresh_from_db()
    assert (study.state, study.is_over) == (State.FAILED, True)
    return study


@pytest.fixture
def searching(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """One arm came through its search and has its scores. The other was lost in it, on a full disk."""
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
            fail(job)
    study.advance()
    study = conclude(study, TABLE)
    assert [arm.is_lost for arm in study.arms.order_by("name")] == [True, False]
    assert study.is_over
    return study


def run_of(study: Study, arm: str = "efficient") -> TrainingRun:
    return TrainingRun.objects.filter(study_arm__study=study, study_arm__name=arm).earliest("pk")


def now(study: Study) -> Study:
    return Study.objects.get(pk=study.pk)


def test_the_study_waits_for_it_and_comes_to_a_verdict(study: Study, ed: User) -> None:
    run_of(study).resume(ed)
    study = now(study)
    assert (study.state, study.is_over) == (State.RUNNING, False)
    study.advance()
    assert not now(study).is_over, "while its run waits"
    study = conclude(study, TABLE)
    assert study.state == State.SUCCEEDED
    assert [arm.name for arm in study.result.arms] == ["efficient", "quality"]


def test_pages_say_that_it_goes_on(study: Study, client: Client, ed: User) -> None:
    run = run_of(study)
    client.force_login(ed)
    page = client.post(reverse("training-run-resume", args=[run.pk]), follow=True).content.decode()
    assert "Its study goes on, and will be judged anew" in page
    assert client.get(study.get_absolute_url()).context["study"].state == State.RUNNING


def test_a_program_finds_it_at_work_again(study: Study, api: Client) -> None:
    assert api.post(f"/api/v1/runs/{run_of(study).pk}/resume").status_code == 202
    assert api.get(f"/api/v1/studies/{study.pk}").json()["state"] == State.RUNNING


def test_a_run_that_fails_again_ends_the_study_again(study: Study, ed: User) -> None:
    run_of(study).resume(ed)
    finish(study.jobs().get(), State.FAILED, error_code="disk_full", error_message="The disk is full.")
    now(study).advance()
    assert (now(study).state, now(study).is_over) == (State.FAILED, True)


def test_a_run_of_a_study_that_is_at_work_changes_nothing_about_it(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = make_study(project, dataset, base_model, by=ed, seeds=[1, 2])
    first = study.jobs().earliest("pk")
    fail(first)
    study.advance()
    before = now(study).forecast_seconds
    run_of(study).resume(ed)
    assert now(study).forecast_seconds == before
    assert not first.events.filter(event="go_on").exists()


def test_an_arm_that_was_lost_in_its_search_gets_its_seeds_after_all(searching: Study, ed: User) -> None:
    for run in searching.runs().filter(outcome="failed"):
        run.resume(ed)
    study = now(searching)
    assert study.seconds_to_come > 0
    study = conclude(study, TABLE)
    assert study.state == State.SUCCEEDED
    assert [arm.name for arm in study.result.arms] == ["efficient", "quality"]
    assert study.seconds_to_come == 0


def test_the_month_must_have_room_for_what_follows_from_it(
    searching: Study, project: Project, ed: User
) -> None:
    run = run_of(searching)
    used = BudgetStatus.for_project(project).used
    # Enough for the run itself, and for nothing that comes after it.
    ComputeBudget.objects.change(project, (used + 1.1 * run.forecast["seconds"]["expected"]) / HOUR, None)
    with pytest.raises(OverBudget):
        run.resume(ed)
    assert now(searching).is_over
    assert run_of(searching).state == State.FAILED
    ComputeBudget.objects.change(project, (used + 2 * searching.whole_forecast) / HOUR, None)
    run_of(searching).resume(ed)
    reserved = BudgetStatus.for_project(project).reserved
    assert reserved == pytest.approx(run.forecast["seconds"]["expected"] + now(searching).seconds_to_come)


def test_nothing_is_resumed_while_the_study_is_being_stopped(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = make_study(project, dataset, base_model, by=ed, seeds=[1, 2])
    failed, working = study.jobs().order_by("pk")
    fail(failed)
    working.move("claim", attempt=1, worker="w@host")
    study.request_cancel(ed)
    with pytest.raises(IllegalMove, match="being stopped"):
        run_of(study).resume(ed)
    working.move("stopped")
    now(study).advance()
    run_of(study).resume(ed)
    assert (now(study).state, now(study).cancelled_at) == (State.RUNNING, None)


def test_a_study_that_cannot_go_on_says_why(study: Study, ed: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_study: Study, _key: str = "") -> None:
        raise SpecError("max_length", "This base model reads at most 8 tokens.")

    monkeypatch.setattr(Study, "_queue_next", refuse)
    with pytest.raises(IllegalMove, match="cannot go on: This base model reads"):
        run_of(study).resume(ed)
    assert now(study).is_over
    assert run_of(study).state == State.FAILED
