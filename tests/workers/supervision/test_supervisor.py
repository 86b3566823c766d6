"""What the parent makes of a child that misbehaves, and what a child may know.

The children here are scripts: a garbage line, a deaf process or a sudden death cannot be asked of the engine.
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
from tests.workers.conftest import cast, claim, play
from workers import tasks
from workers.contract.events import MAX_LINE, ArmEnd
from workers.supervision import engine_process, stop_policy, supervisor
from workers.supervision.heartbeat import row_name
from workers.supervision.recorders import TrainRecorder
from workers.tasks import attempt, work

FAILS = 'tell("Failure", code="bad_model", message="as asked")\ntell("Finished", reason="failed")\n'
PROGRESS = 'print(\'{"event": "Progress", "phase": "reading", "step": 1, "total": 2}\', flush=True)\n'


@pytest.fixture
def job(db: None, project: Project) -> Job:
    Job.objects.submit(Job.Kind.INSPECT, {}, project=project, by=None)
    return claim("cpu")


def test_who_signals_the_whole_group_drains_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job.objects.submit(Job.Kind.INSPECT, {}, project=project, by=None)
    told = 'tell("Progress", phase="counting")\nos.kill(os.getppid(), signal.SIGTERM)\n'
    told += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    told += 'tell("Finished", reason=json.loads(sys.stdin.readline())["stop"])\n'
    cast(told, job, monkeypatch)
    work.apply([job.pk], routing_key="cpu")
    job.refresh_from_db()
    assert (job.state, job.ignored_attempts) == (State.INTERRUPTED, 1)
    assert job.events.latest("pk").text == supervisor.WORKER_SHUTS_DOWN


@pytest.mark.django_db(transaction=True)
def test_a_paused_node_keeps_its_wake_up_until_it_is_resumed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it came back for the next one at once, it could swallow all those of an idle neighbour."""
    monkeypatch.setattr(tasks, "CLAIM_RETRY_SECONDS", 0.1)
    job = Job.objects.submit(Job.Kind.INSPECT, {}, project=project, by=None)
    cast(FAILS, job, monkeypatch)
    node = row_name(gethostname())
    WorkerNode.objects.register(node, queue="cpu", host="box", pid=1, device="CPU")
    WorkerNode.objects.get(name=node).pause(by="mara")
    states: list[str] = []

    def resume() -> None:
        time.sleep(1)
        states.append(Job.objects.get(pk=job.pk).state)
        WorkerNode.objects.get(name=node).resume()
        connection.close()

    person = threading.Thread(target=resume)
    person.start()
    work.apply([job.pk], routing_key="cpu")
    person.join()
    job.refresh_from_db()
    assert (states, job.error_message) == ([State.QUEUED], "as asked")


def test_it_gives_no_secret_to_the_child(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECRET_KEY", "DATABASE_URL", "REDIS_URL", "EMAIL_URL", "HF_TOKEN"):
        monkeypatch.setenv(name, "canary-7341")
    script = 'open(sys.argv[-1] + "/../environment", "w").write(repr(dict(os.environ)) + repr(sys.argv))\n'
    play(script, job, monkeypatch)
    seen = (Path(settings.DATA_DIR) / "work" / "environment").read_text()
    assert "canary-7341" not in seen
    assert "OMP_NUM_THREADS" in seen


def test_only_who_downloads_learns_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "https://user:password@proxy.example.org")
    monkeypatch.setenv("HF_TOKEN_PATH", "/somewhere/token")
    told = {kind for kind in Job.Kind if "password" in str(engine_process.environment(kind, Path("out")))}
    tokens = {kind for kind in Job.Kind if "HF_TOKEN_PATH" in engine_process.environment(kind, Path("out"))}
    assert told == tokens == {Job.Kind.INSPECT}


def test_it_survives_a_line_without_end_and_says_so(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = play(PROGRESS + f'print("x" * {MAX_LINE + 10_000_000}, flush=True)\n' + FAILS, job, monkeypatch)
    warnings = [event.text for event in JobEvent.objects.filter(job=job, level="warning")]
    assert warnings[0].startswith(f"The engine sent a line that could not be read: a line of {MAX_LINE + 1}")
    assert ended.error_message == "as asked"


def test_it_survives_a_garbage_line_and_says_so(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = 'print(\'{"event": "Failure", "code": "bad_model", "message": "No weights."}\')\n'
    ended = play(PROGRESS + 'print("Segmentation fault?")\n' + failure, job, monkeypatch)
    assert ended.error == {"code": "bad_model", "message": "No weights."}
    assert JobEvent.objects.filter(job=job, level="warning", text__contains="could not be read").exists()


def test_it_interrupts_a_job_whose_child_dies_without_a_word(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = play(PROGRESS + "os.kill(os.getpid(), signal.SIGSEGV)\n", job, monkeypatch)
    assert ended.state == State.INTERRUPTED


def test_it_kills_a_deaf_child_after_its_grace(job: Job, monkeypatch: pytest.MonkeyPatch, ed: User) -> None:
    monkeypatch.setitem(stop_policy.GRACE_SECONDS, "cancel", 1.0)
    job.request_cancel(ed)
    began = time.monotonic()
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)\n"
    ended = play(script, job, monkeypatch)
    assert ended.state == State.CANCELLED
    assert time.monotonic() - began < 8


def test_a_stop_needs_no_room_on_the_disk(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def full(_job: Job) -> Iterator[IO[bytes]]:
        with open("/dev/full", "wb", buffering=0) as log:
            yield log

    monkeypatch.setattr(supervisor, "_open_log", full)
    ended = play(PROGRESS + "time.sleep(60)\n", job, monkeypatch, draining=lambda: True)
    assert (ended.state, ended.error) == (State.INTERRUPTED, None)
    assert job.events.latest("pk").text == supervisor.WORKER_SHUTS_DOWN


def test_a_log_on_a_full_disk_costs_no_attempt(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "DATA_DIR", tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / f"logs/job-{job.pk}.log").symlink_to("/dev/full")
    failure = 'tell("Failure", code="bad_model", message="No weights.")\ntell("Finished", reason="failed")\n'
    assert play(failure, job, monkeypatch).error == {"code": "bad_model", "message": "No weights."}


def test_an_engine_that_is_told_to_stop_by_others_counts_for_nothing(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = play('tell("Finished", reason="drain")\nsys.exit(3)\n', job, monkeypatch)
    assert (ended.state, ended.ignored_attempts) == (State.INTERRUPTED, 1)


def test_it_does_not_wait_for_a_pipe_that_a_grandchild_keeps_open(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "LAST_LINES_SECONDS", 1.0)
    began = time.monotonic()
    ended = play(PROGRESS + "if not os.fork():\n    time.sleep(60)\n", job, monkeypatch)
    assert ended.state == State.INTERRUPTED
    assert time.monotonic() - began < 20


def test_it_survives_a_line_nested_without_end(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = play('print("[" * 200_000, flush=True)\nos._exit(7)\n', job, monkeypatch)
    assert ended.state == State.INTERRUPTED


def test_it_stops_at_once_when_the_work_fails_while_stopping(
    job: Job, monkeypatch: pytest.MonkeyPatch, ed: User
) -> None:
    job.request_cancel(ed)
    monkeypatch.setattr(engine_process, "ENGINE", ("/nonexistent/python",))
    attempt(job, lambda: False)
    assert Job.objects.get(pk=job.pk).state == State.CANCELLED


def test_it_keeps_numbers_of_bytes_that_32_bits_do_not_hold(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = '{"event": "Progress", "phase": "hashing", "step": 5000000000, "total": 16000000000}'
    ended = play(f"print('{line}', flush=True)\n", job, monkeypatch)
    field = Job._meta.get_field("step")
    assert (ended.step, ended.percent) == (5_000_000_000, 31)
    assert field.get_internal_type() == "PositiveBigIntegerField", "PostgreSQL would refuse it"


def test_it_writes_nothing_once_another_attempt_has_the_job(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    Job.objects.filter(pk=job.pk).update(attempt=2)
    began = time.monotonic()
    ended = play(PROGRESS + "time.sleep(60)\n", job, monkeypatch)
    assert (ended.state, ended.attempt, ended.phase) == (State.STARTING, 2, "")
    assert time.monotonic() - began < 20


def test_it_refuses_a_result_that_is_no_result(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = play(PROGRESS + 'print(\'{"event": "Finished", "reason": "done"}\')\n', job, monkeypatch)
    assert ended.error is not None
    assert ended.error["code"] == "internal_error"


HEARS = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
tell("Progress", phase="training", step=1, total=9)
heard = []
while len(heard) < %d:
    heard.append(json.loads(sys.stdin.readline())["stop"])
tell("Failure", code="bad_model", message=" ".join(heard))
tell("Finished", reason=heard[-1])
"""


def test_a_stronger_wish_follows_a_weaker_one(run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, wishes = claim("gpu"), iter(["", "finish", "finish", "park", "finish", "cancel"])
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(Job, "read_stop_request", lambda _job: next(wishes, "cancel"))
    ended = play(HEARS % 4, waiting, monkeypatch, lambda: True)
    assert ended.error_message == "drain finish park cancel"


LEARNS = """
tell("Progress", phase="training", step=0, total=9)
tell("Metrics", arm=0, step=1, values={"train/loss": 1.0})
tell("Checkpoint", step=1, path="step-1", manifest_sha256="")
tell("Progress", phase="saving")
"""


def test_the_row_says_that_it_trains_before_anybody_sees_a_point_of_its_curve(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, phases = MetricSeries.objects.append, []

    def look(*values: object) -> None:
        phases.append(Job.objects.get(pk=run.job_id).phase)
        append(*values)  # type: ignore[arg-type]

    monkeypatch.setattr(MetricSeries.objects, "append", look)
    ended = play(LEARNS + FAILS, claim("gpu"), monkeypatch)
    assert (ended.error_message, phases) == ("as asked", ["training"])


def test_a_person_who_keeps_the_best_is_passed_on(
    run: TrainingRun, ed: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = claim("gpu")
    Job.objects.filter(pk=waiting.pk).update(keep=Job.Keep.ADAPTER)
    assert play(HEARS % 1, waiting, monkeypatch).error_message == "finish"


def test_a_child_that_cannot_finish_before_its_worker_leaves_does_so_later(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, began = claim("gpu"), time.monotonic()
    Job.objects.filter(pk=waiting.pk).update(keep=Job.Keep.ADAPTER)
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.1)
    monkeypatch.setitem(stop_policy.GRACE_SECONDS, "finish", 0.5)

    def told_to_leave() -> bool:
        if time.monotonic() - began < 3:
            return False
        make_checkpoint(waiting, step=1)
        return True

    deaf = 'signal.alarm(60)\ntell("Progress", phase="training", step=1, total=9)\nsys.stdin.readline()\n'
    deaf += "time.sleep(60)\n"
    ended = play(deaf, waiting, monkeypatch, told_to_leave)
    assert (ended.state, ended.ignored_attempts, ended.keep) == (State.INTERRUPTED, 1, Job.Keep.ADAPTER)
    assert 3.5 < time.monotonic() - began < 20, "the time to hurry begins when the worker is told to leave"


def test_what_is_said_while_its_time_runs_out_is_still_heard(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = claim("gpu")
    Job.objects.filter(pk=waiting.pk).update(keep=Job.Keep.ADAPTER)
    monkeypatch.setitem(stop_policy.GRACE_SECONDS, "finish", 0.2)
    ended: list[TrainingRun] = []

    def publish_slowly(_recorder: TrainRecorder, end: ArmEnd) -> None:
        time.sleep(1)
        run.end(end.outcome, step=end.step)
        ended.append(run)

    monkeypatch.setattr(TrainRecorder, "_end_arm", publish_slowly)
    saves = """
tell("Progress", phase="training", step=1, total=9)
sys.stdin.readline()
tell("ArmEnd", arm=0, outcome="succeeded", step=1)
time.sleep(0.3)
tell("Finished", reason="done")
"""
    assert play(saves, waiting, monkeypatch, lambda: bool(ended)).state == State.SUCCEEDED


def test_saving_the_best_takes_as_long_as_it_takes(run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = claim("gpu")
    Job.objects.filter(pk=waiting.pk).update(keep=Job.Keep.ADAPTER)
    monkeypatch.setitem(stop_policy.GRACE_SECONDS, "finish", 0.2)
    saving = 'tell("Progress", phase="training", step=1, total=9)\nsys.stdin.readline()\ntime.sleep(1)\n'
    saved = 'tell("Failure", code="bad_model", message="It is saved.")\ntell("Finished", reason="failed")\n'
    assert play(saving + saved, waiting, monkeypatch).error_message == "It is saved."


def test_a_child_that_cannot_save_in_time_keeps_nothing_and_that_is_said(
    run: TrainingRun, ed: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = claim("gpu")
    monkeypatch.setitem(stop_policy.GRACE_SECONDS, "park", 1.5)
    waiting.request_cancel(ed, keep="checkpoint")
    ended = play(HEARS % 2, waiting, monkeypatch)
    assert (ended.state, ended.keep, ended.step) == (State.CANCELLED, "", 1)
    assert (
        ended.events.latest("seq").description == "Stopped: No checkpoint could be saved, so nothing is kept."
    )


def test_keeping_a_checkpoint_may_take_as_long_as_a_drain() -> None:
    assert stop_policy.GRACE_SECONDS["park"] == stop_policy.GRACE_SECONDS["drain"] == 45.0
    assert stop_policy.GRACE_SECONDS["cancel"] == 20.0


def test_a_child_that_still_loads_has_time_to_keep_the_best(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = claim("gpu")
    Job.objects.filter(pk=waiting.pk).update(keep=Job.Keep.ADAPTER)
    monkeypatch.setitem(stop_policy.GRACE_SECONDS, "finish", 0.2)
    loading = 'tell("Progress", phase="loading")\nsys.stdin.readline()\ntime.sleep(1)\n'
    loaded = (
        'tell("Failure", code="bad_model", message="It has loaded.")\ntell("Finished", reason="failed")\n'
    )
    assert play(loading + loaded, waiting, monkeypatch).error_message == "It has loaded."


def test_the_log_says_when_it_was_asked_to_stop(job: Job, monkeypatch: pytest.MonkeyPatch, ed: User) -> None:
    job.request_cancel(ed)
    play("sys.stdin.readline()\n", job, monkeypatch)
    assert "--- asked to stop (cancel) at 20" in job.log_tail()
