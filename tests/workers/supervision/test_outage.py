"""Database outages during an attempt: the engine works on, and every row ends as without an outage."""

from __future__ import annotations

import contextlib
import threading
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
from tests.workers.conftest import claim, run_script, run_until, set_engine_script
from tests.workers.outages import Switch, breakable_database, call_later
from workers.contract.events import Message, to_line
from workers.supervision import database_outage, stop_policy, supervisor
from workers.supervision.recorders import TrainRecorder
from workers.tasks import attempt

# 60 steps in 3 s.
STEADY = """
open(sys.argv[-1] + "/../started", "w")
emit("Started", pid=os.getpid(), device="cpu")
for step in range(1, 61):
    emit("Metrics", arm=0, step=step, values={"train/loss": 1 / step})
    emit("Progress", phase="training", step=step, total=60)
    if step % 2 == 0:
        emit("Message", text=f"step {step}")
    time.sleep(0.05)
emit("ArmEnd", arm=0, outcome="failed", step=60, code="diverged", message="The end.")
emit("Failure", code="diverged", message="The end.")
emit("Finished", reason="failed")
"""
# Trains until it is asked to stop.
UNTIL_STOPPED = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
emit("Progress", phase="training", step=0, total=100)
emit("Progress", phase="training", step=1, total=100)
open(sys.argv[-1] + "/../started", "w")
reason = json.loads(sys.stdin.readline())["stop"]
open(sys.argv[-1] + "/../stopped", "w").write(reason)
emit("Finished", reason=reason)
"""


@pytest.fixture
def database(transactional_db: None) -> Iterator[Switch]:
    with breakable_database() as switch:
        yield switch


@pytest.fixture
def started() -> Path:
    """A file that the scripts write once they run."""
    path = Path(settings.DATA_DIR) / "work" / "started"
    path.unlink(missing_ok=True)
    return path


@pytest.fixture
def job(database: Switch, started: Path, run: TrainingRun) -> Job:
    return claim("gpu")


def schedule_outage(database: Switch, begin: Path, start: float, end: float) -> None:
    """Let an outage start and end so many seconds after `begin` exists."""
    start_outage, end_outage = database

    def wait() -> None:
        if begin.exists():
            call_later(start, start_outage)
            call_later(end, end_outage)
        else:
            call_later(0.02, wait)

    wait()


def stored_steps(run: TrainingRun) -> list[int]:
    """Return the steps that have a stored loss."""
    return [step for step, _loss in MetricSeries.objects.get(run=run, name="train/loss").points()]


def test_no_point_is_missing_after_an_outage(
    job: Job, run: TrainingRun, database: Switch, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule_outage(database, started, 0.5, 2.0)
    ended = run_script(STEADY, job, monkeypatch)
    assert (ended.state, ended.error_code, ended.attempt) == (State.FAILED, "diverged", 1)
    assert stored_steps(run) == list(range(1, 61))
    texts = JobEvent.objects.filter(job=job, event="message").order_by("seq").values_list("text", flat=True)
    assert list(texts) == [f"step {step}" for step in range(2, 61, 2)]


def test_message_that_was_stored_without_an_answer_is_not_repeated(job: Job, tmp_path: Path) -> None:
    one = supervisor.Attempt.of(job, TrainRecorder(job, tmp_path), lambda: False)
    lines = [to_line(Message(text=f"step {step}")).encode() for step in (1, 1, 2)]
    for line in lines:
        one.handle(line)
    one.database.away_since = time.monotonic()
    for line in (lines[-1], to_line(Message(text="step 3")).encode()):
        one.handle(line)
    texts = JobEvent.objects.filter(job=job, event="message").order_by("seq").values_list("text", flat=True)
    assert list(texts) == ["step 1", "step 1", "step 2", "step 3"]


def test_silent_database_does_not_block_a_drain(
    job: Job, run: TrainingRun, database: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no server.")
    monkeypatch.setattr(database_outage, "ANSWER_SECONDS", 0.5)
    with Proxy(f"127.0.0.1:{connection.settings_dict['PORT']}") as proxy:
        connection.close()
        connection.settings_dict["PORT"] = proxy.port
        # The silence outlasts the engine: only a cut connection lets the supervisor notice the drain.
        call_later(1.0, proxy.black_hole)
        monkeypatch.setitem(stop_policy.GRACE_SECONDS, "drain", 1.0)
        began = time.monotonic()
        set_engine_script(UNTIL_STOPPED, job, monkeypatch)
        attempt(job, lambda: time.monotonic() - began > 3)
        proxy.heal()
        connection.close()
    assert (Path(settings.DATA_DIR) / "work" / "stopped").read_text() == "drain"


def test_outage_at_the_end_of_an_attempt_loses_nothing(
    job: Job, run: TrainingRun, database: Switch, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule_outage(database, started, 2.0, 4.0)
    ended = run_script(STEADY, job, monkeypatch)
    assert (ended.state, ended.error_code) == (State.FAILED, "diverged")
    assert stored_steps(run) == list(range(1, 61))


def test_lease_is_renewed_right_after_an_outage(
    job: Job, database: Switch, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Job.objects.filter(pk=job.pk).update(lease_until="2026-01-01T00:00Z")
    monkeypatch.setattr(supervisor, "RENEW_SECONDS", 3600.0)
    schedule_outage(database, started, 0.5, 1.5)
    ended = run_script(STEADY, job, monkeypatch)
    assert (ended.state, ended.attempt) == (State.FAILED, 1)


def test_attempt_writes_nothing_after_another_took_over_in_an_outage(
    job: Job, run: TrainingRun, database: Switch, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_outage, end_outage = database

    def take_over() -> None:
        end_outage()
        Job.objects.filter(pk=job.pk).update(attempt=2, phase="other")
        connection.close()

    schedule_outage((start_outage, take_over), started, 0.5, 1.5)
    # A retry during the outage could win the race against the other attempt.
    monkeypatch.setattr(database_outage, "RETRY_SECONDS", 3.0)
    ended = run_script(STEADY, job, monkeypatch)
    assert (ended.state, ended.attempt, ended.phase) == (State.RUNNING, 2, "other")
    assert not MetricSeries.objects.filter(run=run, last_step__gt=40).exists()


def test_long_outage_drains_the_engine_and_leaves_the_row_to_its_lease(
    job: Job, database: Switch, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = psutil.Process().children()
    monkeypatch.setattr(stop_policy, "OUTAGE_SECONDS", 1.0)
    monkeypatch.setattr(supervisor, "RENEW_SECONDS", 0.5)
    start_outage, end_outage = database
    schedule_outage((start_outage, lambda: None), started, 1.0, 1.0)
    set_engine_script(UNTIL_STOPPED, job, monkeypatch)
    attempt(job, lambda: False)
    end_outage()
    assert (Path(settings.DATA_DIR) / "work" / "stopped").read_text() == "drain"
    ended = Job.objects.get(pk=job.pk)
    assert (ended.state, ended.attempt) == (State.RUNNING, 1)
    assert psutil.Process().children() == others
    ended.recover("Its worker was not heard from in time.")
    assert ended.state == State.INTERRUPTED


def test_shutdown_in_an_outage_drains_the_engine(
    job: Job, database: Switch, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_outage, end_outage = database
    is_away = threading.Event()

    def begin() -> None:
        start_outage()
        is_away.set()

    schedule_outage((begin, end_outage), started, 0.7, 2.0)
    ended = run_script(UNTIL_STOPPED, job, monkeypatch, is_away.is_set)
    assert (ended.state, ended.failed_attempts, ended.ignored_attempts) == (State.INTERRUPTED, 0, 1)


def test_recorder_keeps_its_points_until_they_are_written(
    job: Job, run: TrainingRun, database: Switch, tmp_path: Path
) -> None:
    start_outage, end_outage = database
    recorder = TrainRecorder(job, tmp_path)
    recorder.points = {(0, "train/loss"): [(1, 2.0), (2, 1.0)]}
    link = database_outage.Database()
    start_outage()
    assert not link.try_write(recorder.flush)
    assert link.seconds_away > 0
    end_outage()
    link.last_tried = 0.0
    assert link.try_write(recorder.flush)
    assert (stored_steps(run), recorder.points, link.away_since) == ([1, 2], {}, 0.0)


@pytest.mark.slow
def test_training_and_its_publication_survive_outages(
    database: Switch, real_base: BaseModel, real_dataset: Dataset
) -> None:
    run = make_run(real_dataset.project, real_dataset, real_base, max_steps=40)
    job = claim("gpu")
    _start_outage, end_outage = database
    for number in range(20):
        schedule_outage(database, job.checkpoint_folder(), 2 * number, 2 * number + 1)
    attempt(job, lambda: False)
    end_outage()
    job.refresh_from_db()
    assert (job.state, job.attempt) == (State.SUCCEEDED, 1), job.error
    assert stored_steps(run) == list(range(1, 41))
    assert Adapter.objects.filter(run=run).count() == 1
    assert not JobEvent.objects.filter(job=job, to_state=State.INTERRUPTED).exists()


@pytest.mark.slow
def test_curve_has_no_gap_after_an_outage_that_ended_the_attempt(
    database: Switch, real_base: BaseModel, real_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_policy, "OUTAGE_SECONDS", 0.5)
    run = make_run(real_dataset.project, real_dataset, real_base, max_steps=900)
    job = claim("gpu")
    start_outage, end_outage = database
    # The last read of the row fails as well.
    with contextlib.suppress(OperationalError):
        run_until(job, MetricSeries.objects.filter(run=run, name="train/loss").exists, start_outage)
    end_outage()
    job.refresh_from_db()
    stored, reached = stored_steps(run)[-1], job.checkpoint_step()
    assert job.state == State.RUNNING
    assert reached
    assert stored < reached < 900, "the engine went on until it was drained"
    job.recover("Its worker was not heard from in time.")
    Job.objects.filter(pk=job.pk).update(run_after="2026-01-01T00:00Z")
    Job.objects.get(pk=job.pk).requeue_or_fail()
    again = claim("gpu")
    attempt(again, lambda: False)
    again.refresh_from_db()
    assert (again.state, again.attempt) == (State.SUCCEEDED, 2), again.error
    assert stored_steps(run) == list(range(1, 901))
