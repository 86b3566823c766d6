"""The supervisor beside an engine that misbehaves or is stopped, and what an engine's environment holds.

The engines are scripts: a real engine sends no garbage, ignores no signal and does not crash on request.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from celery.utils.nodenames import gethostname
from django.conf import settings
from django.db import connection

from dashboard.models import Job, JobEvent, MetricSeries, Project, State, TrainingRun, User, WorkerNode
from tests.dashboard.conftest import make_checkpoint
from tests.workers.conftest import claim, run_script, set_engine_script
from workers import tasks
from workers.contract.events import MAX_LINE, ArmEnd
from workers.supervision import engine_process, stop_policy, supervisor
from workers.supervision.heartbeat import row_name
from workers.supervision.recorders import TrainRecorder
from workers.tasks import attempt, work

FAILS = 'emit("Failure", code="bad_model", message="No weights.")\nemit("Finished", reason="failed")\n'
PROGRESS = 'emit("Progress", phase="reading", step=1, total=2)\n'
TRAINS = 'emit("Progress", phase="training", step=1, total=9)\n'
IGNORES_SIGTERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
# Fails with the stop reasons that it received, once it has so many.
COLLECTS_REASONS = f"""
{IGNORES_SIGTERM}{TRAINS}
reasons = []
while len(reasons) < %d:
    reasons.append(json.loads(sys.stdin.readline())["stop"])
emit("Failure", code="bad_model", message=" ".join(reasons))
emit("Finished", reason=reasons[-1])
"""


@pytest.fixture
def job(db: None, project: Project) -> Job:
    """A claimed job of the light queue."""
    Job.objects.submit(Job.Kind.INSPECT, {}, project=project, by=None)
    return claim("cpu")


@pytest.fixture
def keeping(run: TrainingRun) -> Job:
    """A claimed training that was asked to stop and to keep its best adapter."""
    job = claim("gpu")
    Job.objects.filter(pk=job.pk).update(keep=Job.Keep.ADAPTER)
    return job


# Worker and node


def test_sigterm_to_the_worker_drains_the_engine(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job.objects.submit(Job.Kind.INSPECT, {}, project=project, by=None)
    script = 'emit("Progress", phase="counting")\nos.kill(os.getppid(), signal.SIGTERM)\n'
    script += IGNORES_SIGTERM + 'emit("Finished", reason=json.loads(sys.stdin.readline())["stop"])\n'
    set_engine_script(script, job, monkeypatch)
    work.apply([job.pk], routing_key="cpu")
    job.refresh_from_db()
    assert (job.state, job.ignored_attempts) == (State.INTERRUPTED, 1)
    assert job.events.latest("pk").text == supervisor.WORKER_SHUTS_DOWN


@pytest.mark.django_db(transaction=True)
def test_paused_node_keeps_its_wake_up_until_it_is_resumed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fetched the next one, it could take all those of an idle neighbour."""
    monkeypatch.setattr(tasks, "CLAIM_RETRY_SECONDS", 0.1)
    job = Job.objects.submit(Job.Kind.INSPECT, {}, project=project, by=None)
    set_engine_script(FAILS, job, monkeypatch)
    node = row_name(gethostname())
    WorkerNode.objects.register(node, queue="cpu", host="box", pid=1, device="CPU")
    WorkerNode.objects.get(name=node).pause(by="mara")
    states: list[str] = []

    def resume() -> None:
        time.sleep(1)
        states.append(Job.objects.get(pk=job.pk).state)
        WorkerNode.objects.get(name=node).resume()
        connection.close()

    thread = threading.Thread(target=resume)
    thread.start()
    work.apply([job.pk], routing_key="cpu")
    thread.join()
    job.refresh_from_db()
    assert (states, job.error_code) == ([State.QUEUED], "bad_model")


# Environment of the engine


def test_engine_gets_no_secret(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECRET_KEY", "DATABASE_URL", "REDIS_URL", "EMAIL_URL", "HF_TOKEN"):
        monkeypatch.setenv(name, "canary-7341")
    script = 'open(sys.argv[-1] + "/../environment", "w").write(repr(dict(os.environ)) + repr(sys.argv))\n'
    run_script(script, job, monkeypatch)
    environment = (Path(settings.DATA_DIR) / "work" / "environment").read_text()
    assert "canary-7341" not in environment
    assert "OMP_NUM_THREADS" in environment


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("HTTPS_PROXY", {Job.Kind.INSPECT, Job.Kind.PUSH}), ("HF_TOKEN_PATH", {Job.Kind.INSPECT})],
)
def test_only_jobs_that_talk_to_the_hub_get_its_variables(
    monkeypatch: pytest.MonkeyPatch, name: str, kinds: set[Job.Kind]
) -> None:
    monkeypatch.setenv(name, "https://user:password@proxy.example.org")
    given = {kind for kind in Job.Kind if name in engine_process.environment(kind, Path("out"))}
    assert given == kinds


# Broken engines


@pytest.mark.parametrize("line", [f'"x" * {MAX_LINE + 10_000_000}', '"Segmentation fault?"', '"[" * 200_000'])
def test_unreadable_line_is_a_warning(job: Job, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    ended = run_script(f"{PROGRESS}print({line}, flush=True)\n{FAILS}", job, monkeypatch)
    assert JobEvent.objects.filter(job=job, level="warning", text__contains="could not be read").exists()
    assert ended.error == {"code": "bad_model", "message": "No weights."}


def test_crashed_engine_interrupts_the_job(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run_script(PROGRESS + "os.kill(os.getpid(), signal.SIGSEGV)\n", job, monkeypatch)
    assert ended.state == State.INTERRUPTED


def test_engine_that_ignores_a_stop_is_killed(job: Job, monkeypatch: pytest.MonkeyPatch, ed: User) -> None:
    monkeypatch.setitem(stop_policy.GRACE_SECONDS, "cancel", 1.0)
    job.request_cancel(ed)
    began = time.monotonic()
    ended = run_script(IGNORES_SIGTERM + "time.sleep(60)\n", job, monkeypatch)
    assert ended.state == State.CANCELLED
    assert time.monotonic() - began < 50


def test_open_pipe_of_a_grandchild_does_not_block(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "LAST_LINES_SECONDS", 1.0)
    began = time.monotonic()
    ended = run_script(PROGRESS + "if not os.fork():\n    time.sleep(60)\n", job, monkeypatch)
    assert ended.state == State.INTERRUPTED
    assert time.monotonic() - began < 50


def test_finish_without_a_result_is_an_internal_error(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run_script(PROGRESS + 'emit("Finished", reason="done")\n', job, monkeypatch)
    assert ended.error_code == "internal_error"


def test_engine_that_cannot_start_cancels_a_stopping_job(
    job: Job, monkeypatch: pytest.MonkeyPatch, ed: User
) -> None:
    job.request_cancel(ed)
    monkeypatch.setattr(engine_process, "ENGINE", ("/nonexistent/python",))
    attempt(job, lambda: False)
    assert Job.objects.get(pk=job.pk).state == State.CANCELLED


def test_engine_that_was_drained_by_others_counts_as_ignored(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = run_script('emit("Finished", reason="drain")\nsys.exit(3)\n', job, monkeypatch)
    assert (ended.state, ended.ignored_attempts) == (State.INTERRUPTED, 1)


# Full disk


def test_stop_needs_no_disk_space(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def full(_job: Job) -> Iterator[IO[bytes]]:
        with open("/dev/full", "wb", buffering=0) as log:
            yield log

    monkeypatch.setattr(supervisor, "_open_log", full)
    ended = run_script(PROGRESS + "time.sleep(60)\n", job, monkeypatch, lambda: True)
    assert (ended.state, ended.error) == (State.INTERRUPTED, None)
    assert job.events.latest("pk").text == supervisor.WORKER_SHUTS_DOWN


def test_log_on_a_full_disk_fails_no_attempt(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "DATA_DIR", tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / f"logs/job-{job.pk}.log").symlink_to("/dev/full")
    assert run_script(FAILS, job, monkeypatch).error_code == "bad_model"


# Rows


def test_step_beyond_32_bits_is_stored(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'emit("Progress", phase="hashing", step=5_000_000_000, total=16_000_000_000)\n'
    ended = run_script(script, job, monkeypatch)
    assert (ended.step, ended.percent) == (5_000_000_000, 31)
    assert Job._meta.get_field("step").get_internal_type() == "PositiveBigIntegerField"


def test_superseded_attempt_writes_nothing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    Job.objects.filter(pk=job.pk).update(attempt=2)
    began = time.monotonic()
    ended = run_script(PROGRESS + "time.sleep(60)\n", job, monkeypatch)
    assert (ended.state, ended.attempt, ended.phase) == (State.STARTING, 2, "")
    assert time.monotonic() - began < 50


def test_phase_is_stored_before_the_first_point(run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    append, phases = MetricSeries.objects.append, []

    def record_phase(*values: object) -> None:
        phases.append(Job.objects.get(pk=run.job_id).phase)
        append(*values)  # type: ignore[arg-type]

    monkeypatch.setattr(MetricSeries.objects, "append", record_phase)
    script = TRAINS + 'emit("Metrics", arm=0, step=1, values={"train/loss": 1.0})\n'
    script += 'emit("Checkpoint", step=1, path="step-1")\nemit("Progress", phase="saving")\n'
    run_script(script + FAILS, claim("gpu"), monkeypatch)
    assert phases == ["training"]


# Stops


def test_log_records_a_stop(job: Job, monkeypatch: pytest.MonkeyPatch, ed: User) -> None:
    job.request_cancel(ed)
    run_script("sys.stdin.readline()\n", job, monkeypatch)
    assert "--- stop requested (cancel) at 20" in job.log_tail()


def test_stronger_stop_follows_a_weaker_one(run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    job, requests = claim("gpu"), iter(["", "finish", "finish", "park", "finish", "cancel"])
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(Job, "read_stop_request", lambda _job: next(requests, "cancel"))
    ended = run_script(COLLECTS_REASONS % 4, job, monkeypatch, lambda: True)
    assert ended.error_message == "drain finish park cancel"


def test_stop_that_keeps_the_adapter_reaches_the_engine(
    keeping: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_script(COLLECTS_REASONS % 1, keeping, monkeypatch).error_message == "finish"


@pytest.mark.parametrize("phase", ["loading", "training"])
def test_engine_that_loads_or_saves_has_unlimited_grace(
    keeping: Job, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    monkeypatch.setitem(stop_policy.GRACE_SECONDS, "finish", 0.2)
    script = f'emit("Progress", phase="{phase}", step=1, total=9)\nsys.stdin.readline()\ntime.sleep(1)\n'
    assert run_script(script + FAILS, keeping, monkeypatch).error_code == "bad_model"


def test_grace_of_a_finish_begins_with_the_drain(keeping: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.1)
    monkeypatch.setitem(stop_policy.GRACE_SECONDS, "finish", 0.5)

    def is_draining() -> bool:
        if time.monotonic() - began < 2:
            return False
        make_checkpoint(keeping, step=1)
        return True

    script = f"signal.alarm(60)\n{TRAINS}sys.stdin.readline()\ntime.sleep(60)\n"
    ended = run_script(script, keeping, monkeypatch, is_draining)
    assert (ended.state, ended.ignored_attempts, ended.keep) == (State.INTERRUPTED, 1, Job.Keep.ADAPTER)
    assert 2.5 < time.monotonic() - began < 50


def test_events_at_the_end_of_the_grace_are_read(
    keeping: Job, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stop_policy.GRACE_SECONDS, "finish", 0.2)
    ended: list[TrainingRun] = []

    def publish_slowly(_recorder: TrainRecorder, end: ArmEnd) -> None:
        time.sleep(1)
        run.end(end.outcome, step=end.step)
        ended.append(run)

    monkeypatch.setattr(TrainRecorder, "_end_arm", publish_slowly)
    script = f"""
{TRAINS}sys.stdin.readline()
emit("ArmEnd", arm=0, outcome="succeeded", step=1)
time.sleep(0.3)
emit("Finished", reason="done")
"""
    assert run_script(script, keeping, monkeypatch, lambda: bool(ended)).state == State.SUCCEEDED


def test_failed_park_keeps_nothing(run: TrainingRun, ed: User, monkeypatch: pytest.MonkeyPatch) -> None:
    job = claim("gpu")
    monkeypatch.setitem(stop_policy.GRACE_SECONDS, "park", 1.0)
    job.request_cancel(ed, keep="checkpoint")
    ended = run_script(COLLECTS_REASONS % 2, job, monkeypatch)
    assert (ended.state, ended.keep, ended.step) == (State.CANCELLED, "", 1)
    assert "No checkpoint could be saved" in ended.events.latest("seq").description
