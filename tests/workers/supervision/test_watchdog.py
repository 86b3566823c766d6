"""Engines without progress are killed, and so are processes left behind on a device."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from django.conf import settings

from dashboard.models import BaseModel, Job, JobEvent, State, TrainingRun
from tests.workers.conftest import claim, run_script, set_engine_script
from workers.supervision import device_lock, engine_process, forked_engine, supervisor
from workers.supervision.engine_process import EngineProcess
from workers.supervision.process_identity import SPAN
from workers.supervision.recorders import TrainRecorder

STUCK = """
emit("Started", pid=os.getpid(), device="cpu")
emit("Progress", phase="training", step=0, total=9)
emit("Progress", phase="training", step=1, total=9)
time.sleep(60)
"""
FAILS = 'emit("Failure", code="bad_model", message="bad")\nemit("Finished", reason="failed")\n'
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def job(run: TrainingRun) -> Job:
    return claim("gpu")


def test_engine_without_progress_is_killed_after_a_warning(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STALL_SECONDS", 1.0)
    before = set(psutil.Process().children())
    ended = run_script(STUCK, job, monkeypatch)
    assert ended.state == State.INTERRUPTED
    # A start of more than a second is warned of as well.
    warnings = JobEvent.objects.filter(job=job, level="warning")
    assert {event.text[:25] for event in warnings} == {"There was no progress for"}
    assert "made no progress" in JobEvent.objects.get(job=job, event="interrupt").text
    assert set(psutil.Process().children()) <= before


def test_slow_steps_extend_the_limit(job: Job, tmp_path: Path) -> None:
    watched = EngineProcess(subprocess.Popen(SLEEP, start_new_session=True), io.BytesIO())
    attempt = supervisor.Attempt.of(job, TrainRecorder(job, tmp_path), lambda: False)
    watched._step_seconds.extend([100.0, 110.0, 5.0])
    watched.last_progress -= 1900
    attempt.check_progress(watched)
    assert (attempt.is_stall_warned, attempt.has_stalled) == (True, False)
    watched.last_progress -= 200
    attempt.check_progress(watched)
    assert attempt.has_stalled
    assert watched.wait() < 0


LONG_STEPS = """
for step in range(9):
    emit("Metrics", arm=0, step=step, values={"train/loss": 1.0})
    emit("Progress", phase="training", step=step, total=99)
    time.sleep(0.2)
time.sleep(60)
"""


def test_seconds_per_step_count_one_event_per_step(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_engine_script(LONG_STEPS, job, monkeypatch)
    with (tmp_path / "log").open("wb") as log:
        watched = EngineProcess.start(job, tmp_path / "out", log)
    try:
        deadline = time.monotonic() + 20
        while len(watched._step_seconds) < 9 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert watched.seconds_per_step >= 0.2
    finally:
        watched.kill()


def test_keep_alive_counts_as_progress(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STALL_SECONDS", 2.0)
    working = 'emit("Progress", phase="training", step=0, total=9)\n'
    working += 'for _ in range(12):\n    emit("KeepAlive")\n    time.sleep(0.25)\n'
    ended = run_script(working + FAILS, job, monkeypatch)
    assert (ended.error_message, JobEvent.objects.filter(job=job, level="warning").count()) == ("bad", 0)


def test_last_lines_are_awaited_after_a_suspend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "LAST_LINES_SECONDS", 0.2)
    silent = EngineProcess(subprocess.Popen(["true"]), io.BytesIO())
    silent.process.wait()
    time.sleep(0.4)
    assert not silent.has_ended
    time.sleep(0.4)
    assert silent.has_ended


def test_process_left_on_the_device_is_killed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    left = subprocess.Popen(SLEEP, start_new_session=True)
    device_lock.acquire("gpu@test", left.pid)
    run_script("sys.exit(1)\n", job, monkeypatch)
    assert not psutil.pid_exists(left.pid)
    left.wait()
    assert JobEvent.objects.filter(job=job, text__contains=f"Killed process {left.pid}").exists()
    assert device_lock.clear("gpu@test") is None


def test_reused_pid_is_not_killed() -> None:
    other = subprocess.Popen(SLEEP, start_new_session=True)
    device_lock.acquire("gpu@test", other.pid)
    record = Path(settings.DATA_DIR) / "run" / "slot-gpu@test.json"
    known = json.loads(record.read_text())
    for changed in ({"born": known["born"] + SPAN}, {"born": known["born"] - 60}):
        record.write_text(json.dumps({**known, **changed}))
        assert device_lock.clear("gpu@test") is None
    assert other.poll() is None
    other.kill()
    other.wait()


LIMITS = """
import resource
time.sleep(0.5)
seen = [open("/proc/self/oom_score_adj").read().strip(), resource.getrlimit(resource.RLIMIT_CORE)[0]]
group = "/proc/self/autogroup"
seen.append(os.getpriority(os.PRIO_PROCESS, 0))
seen.append(open(group).read().split()[-1] if os.path.exists(group) else str(seen[-1]))
emit("Failure", code="bad_model", message=json.dumps(seen))
"""


def test_engine_has_a_low_priority_an_oom_score_and_no_core_dump(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert json.loads(run_script(LIMITS, job, monkeypatch).error_message) == ["100", 0, 5, "5"]


def test_inference_is_killed_first_for_lack_of_memory(
    base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_model.serve()
    assert json.loads(run_script(LIMITS, claim("serve"), monkeypatch).error_message) == ["1000", 0, 2, "2"]


def test_a_higher_oom_score_is_kept() -> None:
    process = subprocess.Popen(SLEEP)
    adjustment = Path(f"/proc/{process.pid}/oom_score_adj")
    adjustment.write_text("300")
    forked_engine.limit(process.pid)
    assert adjustment.read_text().strip() == "300"
    process.kill()
    process.wait()


def test_engine_gets_the_arms_that_have_ended(
    job: Job, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = TrainingRun.objects.get(pk=run.pk)
    second.pk, second.outcome = None, "failed"
    second.save(force_insert=True)
    ended = run_script(
        'emit("Failure", code="bad_model", message=json.dumps(envelope["ended"]))\n', job, monkeypatch
    )
    assert ended.error == {"code": "bad_model", "message": "[1]"}


def test_drains_use_up_no_attempt(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    obedient = 'emit("Finished", reason=json.loads(sys.stdin.readline())["stop"])\n'
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + obedient
    for number in range(1, 5):
        ended = run_script(script, job, monkeypatch, lambda: True)
        assert (ended.state, ended.attempt, ended.ignored_attempts) == (State.INTERRUPTED, number, number)
        ended.requeue_or_fail()
        Job.objects.filter(pk=job.pk).update(run_after=ended.created_at)
        job = claim("gpu")
    assert job.attempt == 5
