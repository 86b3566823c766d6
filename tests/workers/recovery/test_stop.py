"""A real training that is stopped keeps what the user chose, and can be resumed."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dashboard.models import (
    Adapter,
    BaseModel,
    Dataset,
    Evaluation,
    Job,
    Project,
    State,
    TrainingRun,
    User,
)
from dashboard.models.training.resume import resume
from tests.conftest import make_run
from tests.workers.conftest import claim, kill_engine, run_until
from tests.workers.programs import wait_until
from tests.workers.recovery.test_resume import begins, checkpoints_of, claim_again, curve, kill_after
from workers.supervision import supervisor
from workers.supervision.engine_process import EngineProcess
from workers.tasks import attempt

pytestmark = pytest.mark.slow
# A checkpoint follows each tenth of them.
STEPS, LONG = 120, 400


@pytest.fixture
def run(real_base: BaseModel, real_dataset: Dataset, project: Project, ed: User) -> TrainingRun:
    return make_run(project, real_dataset, real_base, by=ed, max_steps=STEPS, learning_rate=1e-3)


@pytest.fixture(autouse=True)
def frequent_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.05)  # this run is over within a few seconds


@contextlib.contextmanager
def paused_engine(job: Job) -> Iterator[Job]:
    """Let the engine stand still until it has been sent a stop: it must not end before it."""
    kill_engine(job, signal.SIGSTOP)
    try:
        yield Job.objects.get(pk=job.pk)
        wait_until(lambda: "--- stop requested" in job.log_tail(), "the stop is passed on")
    finally:
        kill_engine(job, signal.SIGCONT)


def stopped(job: Job, by: User, keep: str) -> Job:
    """Stop the job after its second checkpoint."""

    def stop() -> None:
        with paused_engine(job) as row:
            row.request_cancel(by, keep)

    return run_until(job, lambda: len(checkpoints_of(job)) >= 2, stop)


@pytest.mark.django_db(transaction=True)
def test_stop_with_adapter_publishes_one_that_loads(run: TrainingRun, ed: User, tiny_folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    job = stopped(claim("gpu"), ed, "adapter")
    run.refresh_from_db()
    assert (job.state, run.state) == (State.SUCCEEDED, "stopped_early")
    assert run.ended_step is not None
    assert 0 < run.ended_step < STEPS
    assert max(curve(run)) == run.ended_step
    adapter = Adapter.objects.get(run=run)
    assert Evaluation.objects.filter(adapter=adapter, job__state=State.QUEUED).exists()
    assert not job.checkpoint_folder().exists()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), adapter.path())
    assert all(weight.any() for name, weight in model.named_parameters() if "lora_B" in name)


@pytest.mark.django_db(transaction=True)
def test_kept_checkpoint_is_resumed_to_the_last_step(run: TrainingRun, ed: User) -> None:
    job = stopped(claim("gpu"), ed, "checkpoint")
    run.refresh_from_db()
    reached = max(curve(run))
    assert (job.state, run.state, run.resumable_from) == (State.CANCELLED, "cancelled", reached)
    assert not Adapter.objects.exists()
    resume(job, ed)
    again = claim("gpu")
    attempt(again, lambda: False)
    run.refresh_from_db()
    assert (run.state, run.step, begins(job)) == ("succeeded", STEPS, [reached])
    assert list(curve(run)) == list(range(1, STEPS + 1))
    assert Adapter.objects.get().run == run
    assert not job.checkpoint_folder().exists()


@pytest.mark.django_db(transaction=True)
def test_stopped_interrupted_training_publishes_its_best(run: TrainingRun, ed: User) -> None:
    job = claim("gpu")
    kill_after(job, lambda: len(checkpoints_of(job)) >= 2)
    saved = job.checkpoint_step()
    assert Job.objects.get(pk=job.pk).request_cancel(ed, "adapter")
    attempt(claim_again(job), lambda: False)
    run.refresh_from_db()
    assert (run.state, run.ended_step) == ("stopped_early", saved)
    assert max(curve(run)) == saved
    assert Adapter.objects.filter(run=run).exists()


@pytest.mark.django_db(transaction=True)
def test_stop_without_checkpoint_cancels(run: TrainingRun, ed: User) -> None:
    job = claim("gpu")
    assert Job.objects.get(pk=job.pk).request_cancel(ed, "adapter")
    attempt(job, lambda: False)
    job.refresh_from_db()
    assert job.state == State.CANCELLED
    assert job.events.get(event="cancel").description.startswith(
        "Asked to stop: Nothing had been learned yet"
    )
    assert not Adapter.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_late_stop_keeps_the_steps_before_it(
    run: TrainingRun, ed: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = claim("gpu")
    assert Job.objects.get(pk=job.pk).request_cancel(ed, "adapter")
    write_events = supervisor.Attempt.write_events

    def late(attempt: supervisor.Attempt, engine: EngineProcess) -> None:
        if len(checkpoints_of(job)) >= 2:
            write_events(attempt, engine)

    monkeypatch.setattr(supervisor.Attempt, "write_events", late)
    attempt(job, lambda: False)
    run.refresh_from_db()
    assert run.state == "stopped_early"
    assert Adapter.objects.get().run == run


@pytest.mark.django_db(transaction=True)
def test_cancel_overrides_a_stop_with_adapter(run: TrainingRun, ed: User) -> None:
    job = claim("gpu")

    def change_of_mind() -> None:
        with paused_engine(job) as row:
            row.request_cancel(ed, "adapter")
            row.request_cancel(ed)

    ended = run_until(job, lambda: len(checkpoints_of(job)) >= 2, change_of_mind)
    assert ended.state == State.CANCELLED
    assert not Adapter.objects.exists()
    assert not job.checkpoint_folder().exists()


@pytest.mark.django_db(transaction=True)
def test_failed_run_is_resumed_after_its_cause_is_fixed(run: TrainingRun, ed: User) -> None:
    job = claim("gpu")
    kill_after(job, lambda: bool(checkpoints_of(job)))
    spec = job.spec
    Job.objects.filter(pk=job.pk).update(spec=spec | {"data": spec["data"] | {"sha256": "f" * 64}})
    attempt(claim_again(job), lambda: False)
    failed = Job.objects.get(pk=job.pk)
    assert failed.error is not None
    assert failed.error["code"] == "checkpoint_mismatch"
    assert "another dataset" in failed.error["message"]
    Job.objects.filter(pk=job.pk).update(spec=spec)
    resume(failed, ed)
    attempt(claim("gpu"), lambda: False)
    run.refresh_from_db()
    assert (run.state, run.error, run.step) == ("succeeded", None, STEPS)


@pytest.mark.django_db(transaction=True)
def test_resume_continues_only_unfinished_arms(run: TrainingRun, ed: User) -> None:
    job = claim("gpu")
    settings_of = run.spec["hyperparameters"]
    # Beside the long arm a short one, whose adapter is published while the other trains.
    run.spec |= {"hyperparameters": settings_of | {"max_steps": LONG}}
    short = run.spec | {"hyperparameters": settings_of | {"max_steps": 20}}
    second = TrainingRun.objects.get(pk=run.pk)
    second.pk, second.name, second.spec = None, "Short", short
    second.save()
    run.save(update_fields=["spec"])
    Job.objects.filter(pk=job.pk).update(spec={"specs": [run.spec, short]})
    job.refresh_from_db()

    def stop() -> None:
        with paused_engine(job) as row:
            row.request_cancel(ed, "checkpoint")

    parked = run_until(job, Adapter.objects.filter(run=second).exists, stop)
    assert [arm.state for arm in parked.training_runs.order_by("pk")] == ["cancelled", "succeeded"]
    Job.objects.filter(kind="evaluate").delete()
    reached = max(curve(run))
    resume(parked, ed)
    attempt(claim("gpu"), lambda: False)
    assert begins(parked) == [reached]
    assert [arm.state for arm in parked.training_runs.order_by("pk")] == ["succeeded", "succeeded"]
    assert Adapter.objects.count() == 2
    assert list(curve(run)) == list(range(1, LONG + 1))
