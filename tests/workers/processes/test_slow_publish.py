"""The lease is renewed while a large result is published on a slow disk."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from dashboard.models import Adapter, Job, State, TrainingRun, User
from tests.workers.conftest import claim, run_script
from tests.workers.publishing import SUCCEEDED, make_artifact
from workers.supervision import publish, recorders, supervisor
from workers.supervision.engine_process import EngineProcess
from workers.supervision.publish import KeepLease, PublishError, check_adapter, publish_folder
from workers.supervision.recorders import TrainRecorder
from workers.supervision.supervisor import Attempt, Fenced

# Reports an adapter and the success of its only arm.
DONE = """
emit("Progress", phase="training", step=1, total=1)
emit("Artifact", arm=0, path="arm-0/adapter", files={})
emit("ArmEnd", arm=0, outcome="succeeded", step=1)
emit("Finished", reason="done")
"""


@pytest.fixture
def job(run: TrainingRun) -> Job:
    return claim("gpu")


@pytest.fixture(autouse=True)
def each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renew the lease each time instead of every ten seconds."""
    monkeypatch.setattr(supervisor, "RENEW_SECONDS", 0.0)


def begin(job: Job, folder: Path) -> tuple[Attempt, TrainRecorder]:
    job.move("progress")
    recorder = TrainRecorder(job, folder)
    attempt = Attempt.of(job, recorder, lambda: False)
    ended = EngineProcess(subprocess.Popen(["true"]), io.BytesIO())
    ended.process.wait()
    recorder.keep_lease = lambda: attempt.keep_lease(ended)
    return attempt, recorder


def test_publishing_renews_the_lease(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[timedelta] = []

    def slow(_source: Path, _target: Path, _files: dict[str, str], alive: KeepLease) -> None:
        Job.objects.filter(pk=job.pk).update(lease_until=timezone.now() + timedelta(seconds=1))
        alive()
        lease = Job.objects.get(pk=job.pk).lease_until
        assert lease
        left.append(lease - timezone.now())
        raise PublishError("This was enough.")

    monkeypatch.setattr(recorders, "publish_adapter", slow)
    assert run_script(DONE, job, monkeypatch).error_code == "publish_failed"
    assert left[0] > timedelta(seconds=60)


STOPPED_MEANWHILE = """
emit("Progress", phase="training", step=0, total=9)
emit("Artifact", arm=0, path="arm-0/adapter", files={})
emit("ArmEnd", arm=0, outcome="succeeded", step=1)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("%s", "w").write(sys.stdin.readline())
emit("Finished", reason="cancel")
"""


def test_stop_is_passed_on_while_publishing(
    job: Job, run: TrainingRun, ed: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.pk, run._state.adding, run.name = None, True, "Second"
    run.save()
    heard = tmp_path / "heard"
    waited: list[float] = []

    def slow(_source: Path, _target: Path, _files: dict[str, str], alive: KeepLease) -> None:
        assert Job.objects.get(pk=job.pk).request_cancel(ed)
        began = time.monotonic()
        while not heard.exists() and time.monotonic() - began < 5:
            alive()
            time.sleep(0.02)
        waited.append(time.monotonic() - began)
        raise PublishError("This was enough.")

    monkeypatch.setattr(recorders, "publish_adapter", slow)
    ended = run_script(STOPPED_MEANWHILE % heard, job, monkeypatch)
    assert json.loads(heard.read_text()) == {"stop": "cancel"}
    assert waited[0] < 2
    assert (ended.state, Adapter.objects.count()) == (State.CANCELLED, 0)


def test_lease_is_renewed_for_each_chunk(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "CHUNK_BYTES", 16)
    attempt, recorder = begin(job, tmp_path)
    renewed: list[float] = []
    monkeypatch.setattr(Attempt, "_renew_lease", lambda mine: renewed.append(mine.database.write_started))
    recorder.record(make_artifact(tmp_path))
    size = (tmp_path / "arm-0/adapter_model.safetensors").stat().st_size
    assert attempt.database.try_write(lambda: recorder.record(SUCCEEDED))
    # Read before and after the rename, and each file and folder made durable.
    assert len(renewed) >= 2 * (size // 16) + 2
    assert renewed == sorted(renewed), "each chunk restarts the time limit of the write"
    assert renewed[0] < renewed[-1]
    assert Adapter.objects.exists()


def test_attempt_that_lost_its_lease_publishes_nothing(
    job: Job, run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _attempt, recorder = begin(job, tmp_path)
    recorder.record(make_artifact(tmp_path))
    real = check_adapter

    def check_and_lose(folder: Path, files: dict[str, str], alive: KeepLease) -> None:
        real(folder, files, alive)
        Job.objects.filter(pk=job.pk).update(attempt=2)

    monkeypatch.setattr(publish, "check_adapter", check_and_lose)
    shelf = Path(settings.DATA_DIR) / "adapters"
    shutil.rmtree(shelf, ignore_errors=True)
    with pytest.raises(Fenced):
        recorder.record(SUCCEEDED)
    run.refresh_from_db()
    assert (run.outcome, Adapter.objects.count()) == ("", 0)
    assert not list(shelf.iterdir())


def test_publishing_a_dataset_renews_the_lease(tmp_path: Path) -> None:
    pieces: list[None] = []
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "train.parquet").write_bytes(b"rows")
        pieces.clear()
        publish_folder(tmp_path / place, tmp_path / "shelf/one", lambda: pieces.append(None))
        assert len(pieces) >= 2


def test_taken_over_engine_does_not_count_as_failure(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    ousted = 'emit("Progress", phase="loading")\nemit("Finished", reason="taken_over")\nsys.exit(3)'
    ended = run_script(ousted, job, monkeypatch)
    assert (ended.state, ended.failed_attempts, ended.ignored_attempts) == (State.INTERRUPTED, 0, 1)
    assert "taken over" in ended.events.order_by("-seq")[0].text
