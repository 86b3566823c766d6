"""The database goes away under a worker: the child works on, and in the end every row is as it should be."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from django.conf import settings
from django.db import OperationalError, connection

from dashboard.models import Adapter, BaseModel, Dataset, Job, JobEvent, MetricSeries, State, TrainingRun
from tests.conftest import make_run
from tests.proxy import Proxy
from tests.workers.conftest import cast, claim, play, work_until
from tests.workers.outages import Switch, breakable, later
from workers.supervision import database_outage, stop_policy, supervisor
from workers.supervision.recorders import TrainRecorder
from workers.tasks import attempt

# Reports a step each 50 ms, and marks when it is half through.
STEADY = """
tell("Started", pid=os.getpid(), device="cpu")
for step in range(1, 101):
    tell("Metrics", arm=0, step=step, values={"train/loss": 1 / step})
    tell("Progress", phase="training", step=step, total=100)
    if step % 2 == 0:
        tell("Message", text=f"step {step}")
    time.sleep(0.05)
tell("ArmEnd", arm=0, outcome="failed", step=100, code="diverged", message="The end.")
tell("Failure", code="diverged", message="The end.")
tell("Finished", reason="failed")
"""
# Trains until it is told to stop, then says good-bye.
UNTIL_STOPPED = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
tell("Progress", phase="training", step=0, total=100)
tell("Progress", phase="training", step=1, total=100)
reason = json.loads(sys.stdin.readline())["stop"]
open(sys.argv[-1] + "/../stopped", "w").write(reason)
tell("Finished", reason=reason)
"""


@pytest.fixture
def database(transactional_db: None) -> Iterator[Switch]:
    with breakable() as switch:
        yield switch


@pytest.fixture
def job(database: Switch, run: TrainingRun) -> Job:
    return claim("gpu")


def losses(run: TrainingRun) -> list[int]:
    """The steps that have a stored loss."""
    return [step for step, _loss in MetricSeries.objects.get(run=run, name="train/loss").points()]


def test_no_point_is_missing_after_an_outage(
    job: Job, run: TrainingRun, database: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, back = database
    later(1.0, away), later(3.5, back)
    ended = play(STEADY, job, monkeypatch)
    assert (ended.state, ended.error_code, ended.attempt) == (State.FAILED, "diverged", 1)
    assert losses(run) == list(range(1, 101))
    told = JobEvent.objects.filter(job=job, event="message").order_by("seq").values_list("text", flat=True)
    assert list(told) == [f"step {step}" for step in range(2, 101, 2)]


def test_a_server_that_is_silent_holds_nothing_up(
    job: Job, run: TrainingRun, database: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("A file cannot be silent.")
    monkeypatch.setattr(database_outage, "ANSWER_SECONDS", 0.5)
    with Proxy(f"127.0.0.1:{connection.settings_dict['PORT']}") as proxy:
        connection.close()
        connection.settings_dict["PORT"] = proxy.port
        # Silent until the child has long ended: only a cut connection lets the worker notice the drain.
        later(1.0, proxy.black_hole)
        monkeypatch.setitem(stop_policy.GRACE_SECONDS, "drain", 1.0)
        began = time.monotonic()
        cast(UNTIL_STOPPED, job, monkeypatch)
        attempt(job, lambda: time.monotonic() - began > 3)
        proxy.heal()
        connection.close()
    assert (Path(settings.DATA_DIR) / "work" / "stopped").read_text() == "drain"


def test_it_outlasts_an_outage_at_the_very_end(
    job: Job, run: TrainingRun, database: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, back = database
    later(4.0, away), later(8.0, back)
    ended = play(STEADY, job, monkeypatch)
    assert (ended.state, ended.error_code) == (State.FAILED, "diverged")
    assert losses(run) == list(range(1, 101))


def test_it_keeps_its_lease_at_once_when_the_database_is_back(
    job: Job, database: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    Job.objects.filter(pk=job.pk).update(lease_until="2026-01-01T00:00Z")
    monkeypatch.setattr(supervisor, "RENEW_SECONDS", 3600.0)
    away, back = database
    later(0.5, away), later(2.0, back)
    ended = play(STEADY, job, monkeypatch)
    assert (ended.state, ended.attempt) == (State.FAILED, 1)


def test_it_writes_nothing_when_another_attempt_took_over_meanwhile(
    job: Job, run: TrainingRun, database: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, back = database

    def take_over() -> None:
        back()
        Job.objects.filter(pk=job.pk).update(attempt=2, phase="other")
        connection.close()

    later(1.0, away), later(3.0, take_over)
    # Nothing may be tried in between: who comes first after an outage is chance.
    monkeypatch.setattr(database_outage, "RETRY_SECONDS", 4.0)
    ended = play(STEADY, job, monkeypatch)
    assert (ended.state, ended.attempt, ended.phase) == (State.RUNNING, 2, "other")
    assert not MetricSeries.objects.filter(run=run, last_step__gt=60).exists()


def test_after_too_long_the_child_is_drained_and_the_row_is_left_to_its_lease(
    job: Job, database: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_policy, "OUTAGE_SECONDS", 1.0)
    monkeypatch.setattr(supervisor, "RENEW_SECONDS", 0.5)
    away, back = database
    later(1.5, away)
    cast(UNTIL_STOPPED, job, monkeypatch)
    attempt(job, lambda: False)
    back()
    assert (Path(settings.DATA_DIR) / "work" / "stopped").read_text() == "drain"
    ended = Job.objects.get(pk=job.pk)
    assert (ended.state, ended.attempt) == (State.RUNNING, 1)
    assert not psutil.Process().children()
    ended.recover("Its worker was not heard from in time.")
    assert ended.state == State.INTERRUPTED


def test_a_worker_that_shuts_down_meanwhile_drains_the_child(
    job: Job, database: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, back = database
    later(1.0, away), later(4.0, back)
    began = time.monotonic()
    ended = play(UNTIL_STOPPED, job, monkeypatch, lambda: time.monotonic() - began > 2)
    assert (ended.state, ended.failed_attempts, ended.ignored_attempts) == (State.INTERRUPTED, 0, 1)


def test_a_recorder_keeps_its_points_until_they_are_through(
    job: Job, run: TrainingRun, database: Switch, tmp_path: Path
) -> None:
    away, back = database
    recorder = TrainRecorder(job, tmp_path)
    recorder.points = {(0, "train/loss"): [(1, 2.0), (2, 1.0)]}
    link = database_outage.Database()
    away()
    assert not link.try_write(recorder.flush)
    assert link.seconds_away > 0
    back()
    link.last_tried = 0.0
    assert link.try_write(recorder.flush)
    assert (losses(run), recorder.points, link.away_since) == ([1, 2], {}, 0.0)


@pytest.mark.slow
def test_a_real_training_and_its_publishing_survive_outages(
    database: Switch, real_base: BaseModel, real_dataset: Dataset
) -> None:
    run = make_run(real_dataset.project, real_dataset, real_base, max_steps=40)
    job = claim("gpu")
    away, back = database
    for start in range(2, 60, 6):
        later(start, away), later(start + 3, back)
    attempt(job, lambda: False)
    back()
    job.refresh_from_db()
    assert (job.state, job.attempt) == (State.SUCCEEDED, 1), job.error
    assert losses(run) == list(range(1, 41))
    assert Adapter.objects.filter(run=run).count() == 1
    assert not JobEvent.objects.filter(job=job, to_state=State.INTERRUPTED).exists()


@pytest.mark.slow
def test_a_curve_has_no_hole_after_an_outage_that_ended_the_attempt(
    database: Switch, real_base: BaseModel, real_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_policy, "OUTAGE_SECONDS", 1.0)
    run = make_run(real_dataset.project, real_dataset, real_base, max_steps=600)
    job = claim("gpu")
    away, back = database
    # A server that is away refuses the last look at the row as well.
    with contextlib.suppress(OperationalError):
        work_until(job, MetricSeries.objects.filter(run=run).exists, away)
    back()
    job.refresh_from_db()
    stored, reached = losses(run)[-1], job.checkpoint_step()
    assert job.state == State.RUNNING
    assert reached
    assert stored < reached < 600, "it went on without its database, until it was asked to save"
    job.recover("Its worker was not heard from in time.")
    Job.objects.filter(pk=job.pk).update(run_after="2026-01-01T00:00Z")
    Job.objects.get(pk=job.pk).requeue_or_fail()
    again = claim("gpu")
    attempt(again, lambda: False)
    again.refresh_from_db()
    assert (again.state, again.attempt) == (State.SUCCEEDED, 2), again.error
    assert losses(run) == list(range(1, 601))
