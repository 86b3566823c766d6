"""The live grid: where each run stands, when a waiting job starts, and what it keeps back until the end."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dashboard.models import BaseModel, Dataset, Job, Project, State, Study, TrainingRun, User
from dashboard.presenters.study_grid import grid_of
from tests.conftest import finish
from tests.dashboard.studies.factories import Table, conclude, end_evaluation, end_training, make_study

SEEDS = (1, 2)
TABLE: Table = {
    "base": {0: [0, 1]},
    "efficient": {seed: [1, 1] for seed in SEEDS},
    "quality": {seed: [1, 0] for seed in SEEDS},
}


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Queued: two arms, two seeds."""
    return make_study(project, dataset, base_model, by=ed, seeds=list(SEEDS))


def states(study: Study) -> list[list[str]]:
    """State of every cell, row by row."""
    found = Study.objects.with_facts().get(pk=study.pk)
    return [[str(cell.state) for cell in row.cells] for row in grid_of(found).rows]


def test_a_seed_at_work_shows_how_far_it_is(study: Study) -> None:
    job = study.jobs().order_by("pk").first()
    assert isinstance(job, Job)
    job.move("claim", attempt=1, worker="test@host")
    job.move("progress")
    Job.objects.filter(pk=job.pk).update(step=3, total_steps=10, phase="training")
    rows = grid_of(Study.objects.with_facts().get(pk=study.pk)).rows
    assert [row.cells[0].percent for row in rows] == [30, 30]
    assert [row.cells[0].state for row in rows] == ["running", "running"]


def test_the_bar_moves_while_the_first_seed_trains(study: Study) -> None:
    job = study.jobs().order_by("pk").first()
    assert isinstance(job, Job)
    job.move("claim", attempt=1, worker="test@host")
    job.move("progress")
    Job.objects.filter(pk=job.pk).update(step=5, total_steps=10, phase="training")
    grid = grid_of(Study.objects.with_facts().get(pk=study.pk))
    # Half of the training of half of the cells, and training is four fifths of a cell's way.
    assert (grid.done, grid.percent) == (0, 20)


def test_the_bar_is_full_when_all_is_scored(study: Study) -> None:
    job = study.jobs().order_by("pk").first()
    assert isinstance(job, Job)
    end_training(job)
    assert grid_of(Study.objects.with_facts().get(pk=study.pk)).percent == 40
    conclude(study, TABLE)
    assert grid_of(Study.objects.with_facts().get(pk=study.pk)).percent == 100


def test_the_end_of_training_counts_the_seeds_that_wait(client: Client, vera: User, study: Study) -> None:
    job = study.jobs().order_by("pk").first()
    assert isinstance(job, Job)
    job.move("claim", attempt=1, worker="test@host")
    job.move("progress")
    begun = timezone.now() - timedelta(minutes=10)
    Job.objects.filter(pk=job.pk).update(started_at=begun, eta_seconds=1200, step=3, total_steps=9)
    grid = grid_of(Study.objects.with_facts().get(pk=study.pk), with_starts=True)
    # 20 minutes of this seed are left, and the next one takes 30 as this one does.
    assert grid.training_left == pytest.approx(3000, abs=5)
    client.force_login(vera)
    page = client.get(reverse("study-grid", args=[study.pk])).content.decode()
    assert "training ends in about 50 min" in page
    assert "about 20 min left" in page


def test_without_a_sign_of_the_pace_no_end_is_promised(study: Study) -> None:
    assert grid_of(Study.objects.with_facts().get(pk=study.pk), with_starts=True).training_left is None


def test_cells_go_from_waiting_over_trained_to_scored(study: Study) -> None:
    assert states(study) == [["queued", "queued"]] * 2
    job = study.jobs().order_by("pk").first()
    assert isinstance(job, Job)
    end_training(job)
    assert states(study) == [["trained", "queued"]] * 2
    study.advance()
    # Its evaluation waits now.
    assert states(study) == [["trained", "queued"]] * 2
    end_evaluation(study.jobs().get(kind=Job.Kind.EVALUATE), TABLE, study.metric)
    assert states(study) == [["scored", "queued"]] * 2


def test_one_arm_that_fails_leaves_the_other_going(study: Study) -> None:
    job = study.jobs().order_by("pk").first()
    assert isinstance(job, Job)
    job.training_runs.order_by("pk")[0].end(
        TrainingRun.Outcome.FAILED, step=1, code="diverged", message="Lost."
    )
    assert states(study) == [["failed", "queued"], ["queued", "queued"]]


def test_a_seed_whose_arms_have_all_ended_waits_for_nothing(client: Client, vera: User, study: Study) -> None:
    job = study.jobs().order_by("pk").first()
    assert isinstance(job, Job)
    job.move("claim", attempt=1, worker="test@host")
    job.move("progress", phase="training", step=3, total_steps=10, eta_seconds=300.0)
    for run in job.training_runs.all():
        run.end("failed", step=3, code="diverged", message="Not a number.")
    first, _second = grid_of(Study.objects.with_facts().get(pk=study.pk)).columns
    assert first.job is None
    job.interrupt("The worker died.")
    job.requeue_or_fail()
    first, second = grid_of(Study.objects.with_facts().get(pk=study.pk), with_starts=True).columns
    assert (first.position, second.position) == (None, 2)


def test_a_search_whose_runs_have_ended_shows_no_progress(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, learning_rates=[1e-4, 3e-4, 1e-3])
    job = study.jobs().get()
    job.move("claim", attempt=1, worker="test@host")
    job.move("progress", phase="training", step=3, total_steps=10)
    for run in job.training_runs.all():
        run.end("failed", step=3, code="diverged", message="Not a number.")
    searches = [row.search for row in grid_of(Study.objects.with_facts().get(pk=study.pk)).rows]
    assert [search and search.percent for search in searches] == [None, None]


def test_scores_are_kept_back_until_the_end(study: Study) -> None:
    first, second = study.jobs().order_by("pk")
    end_training(first)
    study.advance()
    end_evaluation(study.jobs().get(kind=Job.Kind.EVALUATE), TABLE, study.metric)
    cells = [cell for row in grid_of(Study.objects.with_facts().get(pk=study.pk)).rows for cell in row.cells]
    assert {cell.score for cell in cells} == {None}
    conclude(study, TABLE)
    rows = grid_of(Study.objects.with_facts().get(pk=study.pk)).rows
    assert [[cell.score for cell in row.cells] for row in rows] == [[1.0, 1.0], [0.5, 0.5]]
    assert second.pk > first.pk


def test_the_search_shows_its_round_and_then_the_chosen_rate(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1], learning_rates=[1e-4, 2e-4, 4e-4, 8e-4])
    found = Study.objects.with_facts().get(pk=study.pk)
    row = grid_of(found).rows[0]
    assert row.search
    assert (row.search.rates, row.search.rung, row.search.rungs) == (4, 1, 2)
    assert [cell.state for cell in row.cells] == ["planned"]
    for _rung in range(2):
        job = study.jobs().get(state="queued")
        for run in job.training_runs.all():
            loss = abs(run.hyperparameters["learning_rate"] - 2e-4)
            run.end(TrainingRun.Outcome.SUCCEEDED, step=5, measured={"validation_loss": 1 + loss})
        finish(job)
        study.advance()
    row = grid_of(Study.objects.with_facts().get(pk=study.pk)).rows[0]
    assert row.search
    assert (row.search.chosen, row.search.is_bracketed) == (2e-4, True)
    assert [cell.state for cell in row.cells] == ["queued"]


def test_a_search_without_one_rate_that_came_through_has_failed(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1], learning_rates=[1e-4, 2e-4])
    finish(study.jobs().get(), State.FAILED)
    study.advance()
    rows = grid_of(Study.objects.with_facts().get(pk=study.pk)).rows
    assert [(row.search.state if row.search else "", row.cells[0].state) for row in rows] == [
        ("failed", "left_out")
    ] * 2


def test_a_waiting_job_says_its_place(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    page = client.get(reverse("study-grid", args=[study.pk])).content.decode()
    assert "position 1 in the queue" in page
    assert "every 5s" in page


def test_the_end_loads_the_page_anew(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    address = reverse("study-grid", args=[study.pk])
    assert "HX-Refresh" not in client.get(address).headers
    conclude(study, TABLE)
    answer = client.get(address)
    assert answer.headers["HX-Refresh"] == "true"
    assert "every 5s" not in answer.content.decode()


def test_what_was_stopped_is_not_called_done(client: Client, vera: User, ed: User, study: Study) -> None:
    study.request_cancel(ed)
    client.force_login(vera)
    assert "0 of 4 runs scored" in client.get(study.get_absolute_url()).content.decode()


def test_a_job_that_failed_as_a_whole_fails_its_cells(study: Study) -> None:
    job = study.jobs().order_by("pk").first()
    assert isinstance(job, Job)
    finish(job, State.FAILED)
    assert [row[0] for row in states(study)] == ["failed", "failed"]
