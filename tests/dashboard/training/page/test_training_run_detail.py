"""The page of a run in every state."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings
from django.test import Client
from django.urls import reverse

from dashboard.models import DatasetVersion, Evaluation, MetricSeries, State, TrainingRun, User, WorkerNode
from dashboard.models.catalog.metrics import metric_label
from dashboard.models.jobs.adjustments import use_smaller_batches
from tests.conftest import finish, make_run
from tests.dashboard.conftest import evaluate, publish, start_training


def page_of(client: Client, user: User, run: TrainingRun) -> str:
    client.force_login(user)
    answer = client.get(reverse("training-run-detail", args=[run.pk]))
    assert answer.status_code == 200
    return answer.content.decode()


def start(run: TrainingRun) -> None:
    start_training(run)
    MetricSeries.objects.append(run, "train/loss", [(step, 3.0 - step / 4) for step in range(1, 6)])


def test_it_shows_the_position_in_the_queue(client: Client, vera: User, run: TrainingRun) -> None:
    page = page_of(client, vera, run)
    assert "Waiting" in page
    assert "position 1 in the queue" in page
    assert 'data-stalled-queue="gpu"' in page


def test_it_shows_the_expected_start(client: Client, vera: User, run: TrainingRun) -> None:
    WorkerNode.objects.register("gpu0@host", queue="gpu", host="host", pid=1)
    assert "starts in a moment" in page_of(client, vera, run)
    run.project.jobs.filter(training_runs=run).update(priority=-1)
    make_run(run.project, run.dataset_version.dataset, run.base_model, name="Ahead")
    TrainingRun.objects.update(forecast={})
    assert "start unknown" in page_of(client, vera, run)


def test_it_shows_step_percent_and_time_left(client: Client, vera: User, run: TrainingRun) -> None:
    start(run)
    page = page_of(client, vera, run)
    assert "step 5 of 10" in page
    assert "<strong>50 %</strong>" in page
    assert "50 s to 1 min 20 s left" in page
    assert 'aria-current="step"' in page


def test_it_shows_the_phase_before_the_first_step(client: Client, vera: User, run: TrainingRun) -> None:
    assert run.job is not None
    run.job.move("claim", attempt=1)
    run.job.move("progress", phase="loading")
    assert "loading the base model" in page_of(client, vera, run)


def test_it_shows_rows_per_step_and_defaults(client: Client, vera: User, run: TrainingRun) -> None:
    page = page_of(client, vera, run)
    assert "8 × 1 = 8 rows per step, 10 steps." in page
    assert "default 16" in page


def test_it_shows_a_failure_with_cause_advice_and_log(client: Client, ed: User, run: TrainingRun) -> None:
    assert run.job is not None
    logs = Path(settings.DATA_DIR) / "logs"
    logs.mkdir(exist_ok=True)
    (logs / f"job-{run.job_id}.log").write_text("first\n<b>last words</b>\n")
    start(run)
    run.job.move("fail", error_code="diverged", error_message="The loss stopped being a number at step 6.")
    run.refresh_from_db()
    page = page_of(client, ed, run)
    assert "The loss stopped being a number at step 6." in page
    assert "Use a lower learning rate" in page
    assert "&lt;b&gt;last words&lt;/b&gt;" in page
    assert "Try again with these settings" in page


def test_it_shows_the_scores_and_the_adapter(client: Client, vera: User, run: TrainingRun) -> None:
    evaluate(publish(run), 0.0, 0.6)
    page = page_of(client, vera, run)
    assert "+60.0 points" in page
    assert "One seed: indicative only." in page
    assert "Download adapter" in page
    assert "Triage:v1" in page


def test_a_run_on_json_answers_shows_field_f1_first(client: Client, vera: User, run: TrainingRun) -> None:
    DatasetVersion.objects.update(report={"answers": "json"})
    evaluate(publish(run), 0.0, 0.6)
    for number, evaluation in enumerate(run.evaluations.order_by("subject")):
        metrics = {"exact_match": 0.1, "field_f1": 0.5 + number / 10, "json_valid": 1.0}
        evaluation.record_result(200, metrics, [])
    client.force_login(vera)
    rows = client.get(run.get_absolute_url()).context["score_rows"]
    assert [row.metric.name for row in rows] == ["field_f1", "exact_match", "json_valid"]
    [(_run, cells)] = client.get(reverse("training-run-index")).context["rows"]
    assert metric_label("field_f1") in cells


def test_it_shows_a_failed_evaluation(client: Client, vera: User, run: TrainingRun) -> None:
    adapter = publish(run)
    finish(Evaluation.objects.submit(adapter, None), State.FAILED)
    assert "The evaluation failed: Row 1 has no answer." in " ".join(page_of(client, vera, run).split())


def test_it_offers_stop_and_clone_to_editors_only(
    client: Client, ed: User, vera: User, run: TrainingRun
) -> None:
    start(run)
    assert reverse("training-run-cancel", args=[run.pk]) in page_of(client, ed, run)
    page = page_of(client, vera, run)
    assert reverse("training-run-cancel", args=[run.pk]) not in page
    assert "?clone=" not in page


def test_it_shows_the_step_of_kept_weights(client: Client, vera: User, run: TrainingRun) -> None:
    publish(run)
    TrainingRun.objects.filter(pk=run.pk).update(
        outcome="stopped_early", ended_step=6, measured={"published_step": 4}
    )
    page = page_of(client, vera, run)
    assert "The run was stopped after step 6 of 10." in page
    assert "The adapter holds the weights of step 4" in page


def test_it_says_why_weights_are_of_that_step(client: Client, vera: User, run: TrainingRun) -> None:
    publish(run)
    TrainingRun.objects.filter(pk=run.pk).update(measured={"published_step": 1204, "validation_loss": 0.4})
    reason = "the latest whose validation loss is not significantly above the lowest"
    page = page_of(client, vera, run)
    assert "1,204" in page
    assert reason in page
    TrainingRun.objects.filter(pk=run.pk).update(measured={"published_step": 10, "validation_loss": None})
    assert reason not in page_of(client, vera, run)


def test_it_shows_automatic_changes(client: Client, vera: User, run: TrainingRun) -> None:
    assert run.job is not None
    run.job.move("claim", attempt=1)
    use_smaller_batches(run.job, "out_of_memory")
    page = page_of(client, vera, run)
    assert "Attempt 1 ran out of memory. The batch size was reduced from 8 to 4" in page


def test_it_shows_the_curves_as_a_table(client: Client, vera: User, run: TrainingRun) -> None:
    start(run)
    page = page_of(client, vera, run)
    assert "Training loss fell from 2.75 to 1.75" in page
    assert "Show as table" in page


def test_it_lists_events(client: Client, vera: User, run: TrainingRun) -> None:
    start(run)
    assert run.job is not None
    run.job.refresh_from_db()
    run.job.add_message("4 × 8 = 32 rows per step")
    page = page_of(client, vera, run)
    for words in ("Waiting in the queue", "A worker claimed it", "Running", "4 × 8 = 32 rows per step"):
        assert words in page
