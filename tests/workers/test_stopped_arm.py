"""One run of a real training of several is stopped by a person: the others end as if it had ended there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

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
from dashboard.models.stopping import stop_run
from tests.conftest import make_run
from tests.workers.conftest import claim, kill_engine, work_until
from tests.workers.test_resume import checkpoints_of, claim_again, curve
from workers import supervisor
from workers.tasks import attempt

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]
# The one that is stopped would train for longest; the others end soon.
LONG, SHORT = 4000, 300
Arms = Callable[..., list[TrainingRun]]


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOOK_SECONDS", 0.05)


@pytest.fixture
def arms(real_base: BaseModel, real_dataset: Dataset, project: Project, ed: User) -> Arms:
    """Makes a job of three runs, the one in the middle long and with dropout."""

    def make(steps: int = SHORT) -> list[TrainingRun]:
        run = make_run(project, real_dataset, real_base, by=ed, max_steps=steps, learning_rate=1e-3)
        specs = [run.spec]
        for name, changes in (("Long", {"max_steps": LONG, "lora_dropout": 0.1}), ("Third", {"seed": 7})):
            other = TrainingRun.objects.get(pk=run.pk)
            other.pk, other._state.adding, other.name = None, True, name
            other.spec = run.spec | {"name": name, "hyperparameters": run.spec["hyperparameters"] | changes}
            other.save()
            specs.append(other.spec)
        Job.objects.filter(pk=run.job_id).update(spec={"specs": specs})
        return list(TrainingRun.objects.filter(job=run.job_id).order_by("pk"))

    return make


def has_reached(run: TrainingRun, step: int) -> Callable[[], bool]:
    return lambda: TrainingRun.objects.get(pk=run.pk).trained_step >= step


def weights(run: TrainingRun) -> dict[str, list[float]]:
    file = Path(Adapter.objects.get(run=run).path()) / "adapter_model.safetensors"
    return {name: tensor.flatten().tolist() for name, tensor in load_file(file).items()}


def stop(run: TrainingRun, by: User, keep: str) -> None:
    stop_run(TrainingRun.objects.get(pk=run.pk), by, keep)


@pytest.mark.parametrize("keep", ["", "adapter"])
def test_the_others_end_as_if_nobody_had_stopped_it(arms: Arms, ed: User, keep: str) -> None:
    runs = arms()
    job = work_until(claim("gpu"), has_reached(runs[1], 10), lambda: stop(runs[1], ed, keep))
    for run in runs:
        run.refresh_from_db()
    outcome = {"": "cancelled", "adapter": "stopped_early"}[keep]
    assert [run.outcome for run in runs] == ["succeeded", outcome, "succeeded"]
    assert job.state == State.SUCCEEDED
    assert 10 <= (runs[1].ended_step or 0) < SHORT, "else this test shows nothing"
    assert max(curve(runs[1])) == runs[1].ended_step
    assert Adapter.objects.filter(run=runs[1]).exists() == bool(keep)
    assert Evaluation.objects.filter(run=runs[1]).exists() == bool(keep)
    assert not job.checkpoint_folder().exists()
    assert any("Long was stopped after step" in event.description for event in job.events.all())

    Job.objects.filter(kind="evaluate").delete()
    whole = arms()
    # The same job, in which it had ended there by itself.
    spec = Job.objects.get(pk=whole[0].job_id).spec
    spec["specs"][1]["hyperparameters"]["max_steps"] = runs[1].ended_step
    Job.objects.filter(pk=whole[0].job_id).update(spec=spec)
    attempt(claim("gpu"), lambda: False)
    for place in (0, 2):
        assert curve(whole[place]) == curve(runs[place])
        assert weights(whole[place]) == weights(runs[place])


def test_a_wish_outlives_the_engine_that_was_to_carry_it_out(arms: Arms, ed: User) -> None:
    runs = arms()
    job = claim("gpu")

    def stop_and_kill() -> None:
        kill_engine(job)
        stop(runs[1], ed, "adapter")

    work_until(job, lambda: len(checkpoints_of(job)) >= 2, stop_and_kill)
    saved = job.checkpoint_step()
    again = claim_again(job)
    attempt(again, lambda: False)
    for run in runs:
        run.refresh_from_db()
    assert [run.outcome for run in runs] == ["succeeded", "stopped_early", "succeeded"]
    assert runs[1].ended_step == saved, "not one step more than the checkpoint had"
    assert Adapter.objects.count() == 3


def test_the_last_run_that_trains_is_stopped_alone_where_another_has_its_adapter(
    arms: Arms, ed: User
) -> None:
    runs = arms()
    others_are_done = lambda: Adapter.objects.count() == 2  # noqa: E731
    job = work_until(claim("gpu"), others_are_done, lambda: stop(runs[1], ed, ""))
    runs[1].refresh_from_db()
    assert (job.state, runs[1].outcome, Adapter.objects.count()) == (State.SUCCEEDED, "cancelled", 2)


def test_when_each_run_is_stopped_the_job_is_stopped(arms: Arms, ed: User) -> None:
    runs = arms(LONG)

    def stop_all() -> None:
        for run in runs:
            stop(run, ed, "")

    job = work_until(claim("gpu"), has_reached(runs[0], 3), stop_all)
    assert (job.state, job.error) == (State.CANCELLED, None)
    assert [run.outcome for run in job.training_runs.all()] == ["cancelled"] * 3
    assert not Adapter.objects.exists()
    assert not job.checkpoint_folder().exists()
