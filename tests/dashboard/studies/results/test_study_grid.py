"""The live grid of a study: states of its cells, progress, queue positions and hidden scores."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dashboard.models import BaseModel, Dataset, Job, Project, State, Study, TrainingRun, User, WorkerNode
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
    """Return the state of every cell, row by row."""
    found = Study.objects.with_facts().get(pk=study.pk)
    return [[str(cell.state) for cell in row.cells] for row in grid_of(found).rows]


def test_progress_of_a_running_seed(study: Study) -> None:
    job = study.jobs().earliest("pk")
    job.move("claim", attempt=1, worker="test@host")
    job.move("progress")
    Job.objects.filter(pk=job.pk).update(step=5, total_steps=10, phase="training")
    grid = grid_of(Study.objects.with_facts().get(pk=study.pk))
    assert [(row.cells[0].state, row.cells[0].percent) for row in grid.rows] == [("running", 50)] * 2
    # Half of the training of half of the cells; training is four fifths of a cell.
    assert (grid.done, grid.percent) == (0, 20)


def test_progress_is_100_percent_when_all_runs_are_scored(study: Study) -> None:
    job = study.jobs().earliest("pk")
    end_training(job)
    assert grid_of(Study.objects.with_facts().get(pk=study.pk)).percent == 40
    conclude(study, TABLE)
    assert grid_of(Study.objects.with_facts().get(pk=study.pk)).percent == 100


def test_training_left_includes_queued_seeds(client: Client, vera: User, study: Study) -> None:
    job = study.jobs().earliest("pk")
    job.move("claim", attempt=1, worker="test@host")
    job.move("progress")
    begun = timezone.now() - timedelta(minutes=10)
    Job.objects.filter(pk=job.pk).update(started_at=begun, eta_seconds=1200, step=3, total_steps=9)
    grid = grid_of(Study.objects.with_facts().get(pk=study.pk), with_starts=True)
    # 20 minutes of this seed are left, and the next one takes 30.
    assert grid.training_left == pytest.approx(3000, abs=5)
    client.force_login(vera)
    page = client.get(reverse("study-grid", args=[study.pk])).content.decode()
    assert "training ends in about 50 min" in page
    assert "about 20 min left" in page


def test_training_left_counts_the_jobs_that_run_at_a_time(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    WorkerNode.objects.register("gpu0@host", queue="gpu", host="host", pid=1, processes=2)
    study = make_study(project, dataset, base_model, seeds=[1, 2, 3])
    begun = timezone.now() - timedelta(minutes=10)
    for job in study.jobs().order_by("pk")[:2]:
        job.move("claim", attempt=1, worker="test@host")
        job.move("progress")
        Job.objects.filter(pk=job.pk).update(started_at=begun, eta_seconds=1200, step=3, total_steps=9)
    # 20 minutes of the first two of six trainings are left, and two times two follow of 30 minutes each.
    assert grid_of(Study.objects.with_facts().get(pk=study.pk)).training_left == pytest.approx(4800, abs=5)


def test_cell_states_queued_trained_scored(study: Study) -> None:
    assert states(study) == [["queued", "queued"]] * 2
    job = study.jobs().earliest("pk")
    end_training(job)
    assert states(study) == [["trained", "queued"]] * 2
    study.advance()
    # Its evaluation waits now.
    assert states(study) == [["trained", "queued"]] * 2
    end_evaluation(study.jobs().get(kind=Job.Kind.EVALUATE), TABLE, study.metric)
    assert states(study) == [["scored", "queued"]] * 2


def test_seed_with_ended_runs_has_no_open_job(client: Client, vera: User, study: Study) -> None:
    job = study.jobs().earliest("pk")
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


def test_ended_search_has_no_progress(project: Project, dataset: Dataset, base_model: BaseModel) -> None:
    study = make_study(project, dataset, base_model, learning_rates=[1e-4, 3e-4, 1e-3])
    job = study.jobs().get()
    job.move("claim", attempt=1, worker="test@host")
    job.move("progress", phase="training", step=3, total_steps=10)
    for run in job.training_runs.all():
        run.end("failed", step=3, code="diverged", message="Not a number.")
    searches = [row.search for row in grid_of(Study.objects.with_facts().get(pk=study.pk)).rows]
    assert [search and search.percent for search in searches] == [None, None]


def test_scores_are_hidden_until_the_end(study: Study) -> None:
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


def test_search_shows_rung_and_chosen_rate(project: Project, dataset: Dataset, base_model: BaseModel) -> None:
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


def test_search_without_a_finished_run_has_failed(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1], learning_rates=[1e-4, 2e-4])
    finish(study.jobs().get(), State.FAILED)
    study.advance()
    rows = grid_of(Study.objects.with_facts().get(pk=study.pk)).rows
    assert [(row.search.state if row.search else "", row.cells[0].state) for row in rows] == [
        ("failed", "left_out")
    ] * 2


def test_queued_job_shows_its_position(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    page = client.get(reverse("study-grid", args=[study.pk])).content.decode()
    assert "position 1 in the queue" in page
    assert "every 5s" in page


def test_ended_study_reloads_the_page(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    address = reverse("study-grid", args=[study.pk])
    assert "HX-Refresh" not in client.get(address).headers
    conclude(study, TABLE)
    answer = client.get(address)
    assert answer.headers["HX-Refresh"] == "true"
    assert "every 5s" not in answer.content.decode()


def test_failed_runs_and_jobs_fail_their_cells(study: Study) -> None:
    job = study.jobs().earliest("pk")
    first = job.training_runs.earliest("pk")
    first.end(TrainingRun.Outcome.FAILED, step=1, code="diverged", message="Lost.")
    assert states(study) == [["failed", "queued"], ["queued", "queued"]]
    finish(job, State.FAILED)
    assert [row[0] for row in states(study)] == ["failed", "failed"]
