"""Events and checkpoints of a job in the OpenAI-compatible API."""

from __future__ import annotations

import openai
import pytest
from openai import OpenAI

from dashboard.models import Adapter, MetricSeries, TrainingRun
from tests.dashboard.conftest import start_training


def test_events_are_history_and_losses_newest_first(client: OpenAI, adapter: Adapter) -> None:
    job = f"ftjob-{adapter.run_id}"
    events = list(client.fine_tuning.jobs.list_events(job, limit=3))
    assert len({event.id for event in events}) == len(events)
    times = [event.created_at for event in events]
    assert times == sorted(times, reverse=True)
    steps = [event.data for event in events if event.type == "metrics"]
    assert [step["step"] for step in steps] == list(range(10, 0, -1))  # type: ignore[index]
    assert steps[5] == {
        "step": 5,
        "total_steps": 10,
        "train_loss": pytest.approx(0.6),
        "train_mean_token_accuracy": None,
        "valid_loss": 1.25,
        "valid_mean_token_accuracy": None,
    }
    messages = [event.message for event in events if event.type == "message"]
    assert (messages[0], messages[-1]) == ("Finished", "Waiting in the queue")
    assert {event.level for event in events} == {"info"}


def measure_token_accuracy(run: TrainingRun, **measured: int) -> None:
    """Store what a training measures; without it, the run is an older one."""
    MetricSeries.objects.append(run, "train/token_accuracy", [(step, step / 16) for step in range(1, 11)])
    MetricSeries.objects.append(run, "validation/token_accuracy", [(5, 0.25), (10, 0.5)])
    run.measured |= measured
    run.save(update_fields=["measured"])


def test_steps_have_their_token_accuracy(client: OpenAI, adapter: Adapter) -> None:
    measure_token_accuracy(adapter.run)
    events = client.fine_tuning.jobs.list_events(f"ftjob-{adapter.run_id}")
    steps = {event.data["step"]: event.data for event in events if event.type == "metrics"}  # type: ignore[index]
    found = [
        (steps[step]["train_mean_token_accuracy"], steps[step]["valid_mean_token_accuracy"])  # type: ignore[index]
        for step in (4, 5)
    ]
    assert found == [(0.25, None), (0.3125, 0.25)]


def test_loss_that_is_no_number_is_null(client: OpenAI, run: TrainingRun) -> None:
    start_training(run)
    MetricSeries.objects.append(run, "train/loss", [(1, float("nan"))])
    newest = client.fine_tuning.jobs.list_events(f"ftjob-{run.pk}").data[0]
    assert newest.data["train_loss"] is None  # type: ignore[index]


def test_interruption_is_an_event_with_its_reason(client: OpenAI, run: TrainingRun) -> None:
    start_training(run).interrupt("The worker was restarted.", counts_as_failure=False)
    newest = client.fine_tuning.jobs.list_events(f"ftjob-{run.pk}").data[0]
    assert "The worker was restarted." in newest.message


def test_failure_is_an_error_event(client: OpenAI, run: TrainingRun) -> None:
    start_training(run).move(
        "fail", error_code="out_of_memory", error_message="The device ran out of memory."
    )
    assert client.fine_tuning.jobs.list_events(f"ftjob-{run.pk}").data[0].level == "error"


@pytest.mark.parametrize("after", ["ftevent-999999", "x", "ftckpt_1-1"])
def test_cursor_of_another_list_is_refused(client: OpenAI, adapter: Adapter, after: str) -> None:
    job = f"ftjob-{adapter.run_id}"
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.list_events(job, after=after)
    assert refused.value.param == "after"
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.checkpoints.list(job, after=after)


def test_checkpoint_of_a_finished_job_is_its_model(client: OpenAI, adapter: Adapter) -> None:
    [checkpoint] = client.fine_tuning.jobs.checkpoints.list(f"ftjob-{adapter.run_id}")
    name = f"ft:example/tiny:support:triage:{adapter.pk}:ckpt-step-10"
    assert (checkpoint.step_number, checkpoint.fine_tuned_model_checkpoint) == (10, name)
    assert checkpoint.metrics.train_loss == pytest.approx(0.3)
    assert checkpoint.metrics.valid_loss == 0.75
    assert checkpoint.metrics.train_mean_token_accuracy is None
    assert client.models.retrieve(name).id == name.removesuffix(":ckpt-step-10")


@pytest.mark.parametrize(("rows", "loss", "accuracy"), [(2, 0.75, 0.5), (1, None, None)])
def test_full_validation_is_that_on_all_rows(
    client: OpenAI, adapter: Adapter, rows: int, loss: float | None, accuracy: float | None
) -> None:
    assert adapter.run.dataset_version.splits["validation"] == 2
    measure_token_accuracy(adapter.run, validation_rows=rows)
    [checkpoint] = client.fine_tuning.jobs.checkpoints.list(f"ftjob-{adapter.run_id}")
    metrics = checkpoint.metrics
    assert (metrics.train_mean_token_accuracy, metrics.valid_mean_token_accuracy) == (0.625, 0.5)
    assert (metrics.full_valid_loss, metrics.full_valid_mean_token_accuracy) == (loss, accuracy)


def test_running_job_has_no_checkpoint_to_use(client: OpenAI, run: TrainingRun) -> None:
    assert list(client.fine_tuning.jobs.checkpoints.list(f"ftjob-{run.pk}")) == []
