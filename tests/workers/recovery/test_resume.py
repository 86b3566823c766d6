"""An interrupted training continues from its checkpoint; the engines are real."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dashboard.models import (
    Adapter,
    BaseModel,
    Dataset,
    Job,
    JobEvent,
    MetricSeries,
    Project,
    State,
    TrainingRun,
    User,
)
from tests.conftest import make_run
from tests.workers.conftest import claim, kill_engine, run_until
from workers.supervision import engine_process, supervisor
from workers.supervision.recorders import TrainRecorder
from workers.tasks import attempt

STEPS = 100
CONTINUES = "Continues from step "


@pytest.fixture
def steps() -> int:
    return STEPS


@pytest.fixture
def run(real_base: BaseModel, real_dataset: Dataset, project: Project, ed: User, steps: int) -> TrainingRun:
    return make_run(project, real_dataset, real_base, by=ed, max_steps=steps, lora_dropout=0.1)


def kill_after(job: Job, is_time: Callable[[], bool]) -> None:
    """Run an attempt and kill its engine at a moment."""
    run_until(job, is_time, lambda: kill_engine(job))


def checkpoints_of(job: Job) -> list[Path]:
    return sorted(job.checkpoint_folder().glob("[0-9]*"))


def claim_again(job: Job) -> Job:
    """Claim the interrupted job again, without its back-off."""
    Job.objects.filter(pk=job.pk).update(run_after="2026-01-01T00:00Z")
    Job.objects.get(pk=job.pk).requeue_or_fail()
    return claim("gpu")


def curve(run: TrainingRun, name: str = "train/loss") -> dict[int, float]:
    points = MetricSeries.objects.get(run=run, name=name).points()
    assert len(dict(points)) == len(points), "a step was stored twice"
    return dict(points)


def begins(job: Job) -> list[int]:
    texts = JobEvent.objects.filter(job=job, text__startswith=CONTINUES).values_list("text", flat=True)
    return [int(text.removeprefix(CONTINUES).rstrip(".")) for text in texts]


@pytest.mark.django_db(transaction=True)
def test_continued_training_equals_an_uninterrupted_one(
    run: TrainingRun, real_base: BaseModel, real_dataset: Dataset, project: Project, ed: User
) -> None:
    job = claim("gpu")
    kill_after(job, lambda: len(checkpoints_of(job)) == 2)
    assert Job.objects.get(pk=job.pk).state == State.INTERRUPTED
    assert not Adapter.objects.exists()
    again = claim_again(job)
    attempt(again, lambda: False)
    again.refresh_from_db()
    run.refresh_from_db()
    assert (again.state, again.attempt, run.state, run.step) == (State.SUCCEEDED, 2, "succeeded", STEPS)
    (begin,) = begins(again)
    assert 0 < begin < STEPS
    assert list(curve(run)) == list(range(1, STEPS + 1))
    assert Adapter.objects.get().run == run
    assert not again.checkpoint_folder().exists()

    Job.objects.filter(kind="evaluate").delete()
    whole = make_run(project, real_dataset, real_base, by=ed, max_steps=STEPS, lora_dropout=0.1)
    attempt(claim("gpu"), lambda: False)
    for name in ("train/loss", "validation/loss", "train/grad_norm", "train/token_accuracy"):
        assert curve(run, name) == pytest.approx(curve(whole, name), abs=1e-6)


@pytest.mark.django_db(transaction=True)
def test_unstored_metrics_are_reported_again(run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    job = claim("gpu")
    with monkeypatch.context() as forgetful:
        forgetful.setattr(TrainRecorder, "flush", lambda _self: None)
        kill_after(job, lambda: len(checkpoints_of(job)) == 2)
    assert not MetricSeries.objects.exists()
    attempt(claim_again(job), lambda: False)
    assert begins(job)[0] > 0
    assert list(curve(run)) == list(range(1, STEPS + 1))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("steps", [200])
def test_drained_training_continues_at_its_last_step(
    run: TrainingRun, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.05)  # this run is over within a few seconds
    job = claim("gpu")
    attempt(job, lambda: bool(checkpoints_of(job)))
    job.refresh_from_db()
    assert job.state == State.INTERRUPTED
    reached = max(curve(run))
    attempt(claim_again(job), lambda: False)
    assert begins(job) == [reached]
    assert list(curve(run)) == list(range(1, steps + 1))


@pytest.mark.django_db(transaction=True)
def test_sigterm_to_the_engine_alone_acts_as_a_drain(run: TrainingRun) -> None:
    job = claim("gpu")
    interrupted = run_until(job, lambda: bool(checkpoints_of(job)), lambda: kill_engine(job, signal.SIGTERM))
    assert (interrupted.state, interrupted.ignored_attempts) == (State.INTERRUPTED, 1)
    assert interrupted.events.latest("seq").text == supervisor.STOPPED_FROM_OUTSIDE
    reached = max(curve(run))
    attempt(claim_again(job), lambda: False)
    assert begins(job) == [reached]
    assert list(curve(run)) == list(range(1, STEPS + 1))


def test_attempt_without_new_steps_counts_as_failed(
    run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = claim("gpu")
    lines = [
        json.dumps({"event": "Progress", "phase": "training", "step": step, "total": 9}) for step in (5, 5)
    ]
    script = "import os, sys\nsys.stdin.readline()\n" + "".join(f"print('{line}')\n" for line in lines)
    (tmp_path / "child.py").write_text(script)
    monkeypatch.setattr(engine_process, "ENGINE", (sys.executable, str(tmp_path / "child.py")))
    attempt(job, lambda: False)
    job.refresh_from_db()
    assert (job.state, job.step, job.failed_attempts) == (State.INTERRUPTED, 5, 1)
