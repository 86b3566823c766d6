"""Home: the checklist until the first adapter, then running work, failures and results."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import DjangoAssertNumQueries

from dashboard.models import (
    Adapter,
    BaseModel,
    ComputeBudget,
    Dataset,
    Evaluation,
    Job,
    Project,
    State,
    TrainingRun,
    User,
    WorkerNode,
)
from dashboard.models.jobs.compute_use import Month
from tests.conftest import finish, make_dataset, make_run
from tests.dashboard.conftest import start_training
from tests.dashboard.durations import held
from tests.dashboard.studies.factories import Table, conclude, make_study


def page(client: Client, user: User) -> str:
    """Return the page as `user` sees it."""
    client.force_login(user)
    return client.get("/").content.decode()


def publish(run: TrainingRun) -> Adapter:
    """Finish the run and publish its adapter."""
    if run.job and not run.job.is_over:
        finish(run.job)
    run.end("succeeded", step=10)
    return Adapter.objects.publish(run, f"{run.pk}", {"adapter_model.safetensors": "ab" * 32}, 1_110_000)


def evaluate(adapter: Adapter, base: float, tuned: float) -> None:
    """Record both evaluations of an adapter."""
    job = Evaluation.objects.submit(adapter, None)
    finish(job)
    for evaluation in adapter.run.evaluations.all():
        score = base if evaluation.subject == "base" else tuned
        evaluation.record_result(200, {"exact_match": score}, [])


def test_new_project_offers_sample_dataset(client: Client, ed: User) -> None:
    text = page(client, ed)
    assert "Your first adapter, in three steps" in text
    assert 'action="/datasets/sample/"' in text
    assert "Upload your own" in text


def test_viewer_sees_no_upload(client: Client, vera: User) -> None:
    text = page(client, vera)
    assert "/datasets/sample/" not in text
    assert "Only editors and managers of this project can upload" in text


def test_next_step_after_dataset_is_fine_tuning(client: Client, ed: User, dataset: Dataset) -> None:
    text = page(client, ed)
    assert "Fine-tune on this dataset" in text
    assert f"?dataset={dataset.pk}" in text
    assert "Use the sample" not in text


def test_running_run_shows_progress(client: Client, ed: User, run: TrainingRun) -> None:
    job = Job.objects.get(pk=run.job_id)
    job.move("claim", worker="test@host", attempt=1)
    job.move("progress")
    Job.objects.filter(pk=job.pk).update(step=3, total_steps=10, eta_seconds=125)
    text = page(client, ed)
    assert "In progress" in text
    assert 'value="30"' in text
    assert "2 min left" in text


def test_queued_jobs_are_counted_with_the_next_start(client: Client, ed: User, run: TrainingRun) -> None:
    text = page(client, ed)
    assert "You have 1 queued job." in text
    assert "The next one starts" not in text
    WorkerNode.objects.register("gpu@host", queue="gpu", host="host", pid=1)
    assert "The next one starts in a moment." in page(client, ed)


def test_running_run_comes_first_then_the_one_that_has_waited_longest(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    names = ("First in line", "On a worker", "Last in line")
    runs = [make_run(project, dataset, base_model, by=ed, name=name) for name in names]
    start_training(runs[1])
    client.force_login(ed)
    text = client.get("/running/").content.decode()
    assert sorted(names, key=text.index) == ["On a worker", "First in line", "Last in line"]


def test_running_study_is_one_line_without_its_runs(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, by=ed)
    client.force_login(ed)
    seen = client.get("/running/").content.decode()
    assert study.get_absolute_url() in seen
    assert "0 of 6 runs done" in seen
    assert study.runs().first().get_absolute_url() not in seen  # type: ignore[union-attr]


def test_finished_study_is_one_result_without_its_adapters(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    scores: Table = {"base": {0: [0, 1]}, "efficient": {1: [1, 1]}, "quality": {1: [1, 0]}}
    study = conclude(make_study(project, dataset, base_model, by=ed, seeds=[1]), scores)
    seen = page(client, ed)
    assert study.get_absolute_url() in seen
    assert "Indicative only, with 1 seed" in seen
    assert "Not evaluated yet." not in seen


def test_failed_run_needs_attention(client: Client, ed: User, run: TrainingRun) -> None:
    assert run.job
    finish(run.job, State.FAILED, error_code="bad_data", error_message="Row 7 has no answer.")
    text = page(client, ed)
    assert "Needs attention" in text
    assert "Row 7 has no answer." in text


def test_failed_import_needs_attention_until_a_newer_upload(
    client: Client, ed: User, project: Project
) -> None:
    dataset = make_dataset(project, "Tickets", by=ed, ready=False)
    version = dataset.newest()
    assert version
    assert version.job
    finish(version.job, State.FAILED, error_code="bad_data", error_message="The file has no rows.")
    assert "The file has no rows." in page(client, ed)
    make_dataset(project, "Tickets", by=ed)
    assert "The file has no rows." not in page(client, ed)


def test_result_shows_both_scores(client: Client, ed: User, run: TrainingRun) -> None:
    adapter = publish(run)
    assert "Not evaluated yet." in page(client, ed)
    evaluate(adapter, 0.0, 0.6)
    text = " ".join(page(client, ed).split())
    assert "Exact match: base model 0.0 %, adapter 60.0 %, on 200 test rows." in text
    assert "in three steps" not in text


def test_other_projects_are_hidden(client: Client, otto: User, run: TrainingRun) -> None:
    publish(run)
    assert "Triage" not in page(client, otto)


def test_names_are_escaped(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    make_run(project, dataset, base_model, by=ed, name="<img src=x onerror=alert(1)>")
    assert "<img src=x" not in page(client, ed)


def test_number_of_queries_is_constant(
    client: Client,
    ed: User,
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    for number in range(30):
        make_run(project, dataset, base_model, by=ed, name=f"Run {number}")
        evaluate(publish(make_run(project, dataset, base_model, by=ed, name=f"Done {number}")), 0.1, 0.5)
    client.force_login(ed)
    with django_assert_max_num_queries(32):
        client.get("/")


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        (10, ""),
        (4.9, "81.6 % of the compute budget for"),
        (4.5, "0.50 h of 4.5 h are left."),
        (4, "is used or reserved, so no new work can start."),
    ],
)
def test_nearly_used_compute_budget_is_shown(
    client: Client, mara: User, project: Project, run: TrainingRun, hours: float, words: str
) -> None:
    assert run.job
    held(finish(run.job), Month.current().begin, 4 * 3600)
    run.end("succeeded", step=10)
    ComputeBudget.objects.change(project, hours, mara)
    text = " ".join(page(client, mara).split())
    assert words in text
    assert (reverse("compute-budget-index") in text) is bool(words)


def test_used_budget_names_who_can_raise_it(
    client: Client, mara: User, ed: User, vera: User, project: Project
) -> None:
    ComputeBudget.objects.change(project, 0, mara)
    assert "You can raise the budget under Settings" in page(client, mara)
    for user in (ed, vera):
        text = page(client, user)
        assert f"{mara} can raise the budget." in text
        assert "You can raise" not in text


def test_unlimited_project_shows_no_budget(client: Client, mara: User) -> None:
    assert "compute budget" not in page(client, mara).lower()
