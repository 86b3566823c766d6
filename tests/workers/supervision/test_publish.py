"""A worker killed while publishing, or on a full disk, leaves a complete adapter or none."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

from dashboard.models import Adapter, Evaluation, Job, MetricSeries, State, TrainingRun
from tests.conftest import shared_environment
from tests.moments import Interruption, raising
from tests.workers.conftest import claim
from tests.workers.publishing import make_artifact, record_all, record_until
from workers.contract.errors import DiskFull
from workers.supervision import publish
from workers.supervision.publish import (
    PublishError,
    check_adapter,
    check_safetensors,
    publish_adapter,
    publish_folder,
)
from workers.tasks import attempt

# Syncs, the rename and commits of a worker that records a metric, an adapter and the end of a training.
MOMENTS = 15
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def job(run: TrainingRun) -> Job:
    job = claim("gpu")
    job.move("progress")
    return job


def run_next_attempt(job: Job, folder: Path) -> None:
    """Run the next attempt, which saves the adapter again unless the arm has ended."""
    job.refresh_from_db()
    if job.is_over:
        return
    job.recover("Its worker was not heard from in time.")
    Job.objects.filter(pk=job.pk).update(run_after="2026-01-01T00:00Z", priority=9)
    Job.objects.get(pk=job.pk).requeue_or_fail()
    again = claim("gpu")
    assert again.pk == job.pk
    if TrainingRun.objects.filter(job=job, outcome="").exists():
        again.move("progress")
        record_all(again, folder)
    else:
        attempt(again, lambda: False)
    job.refresh_from_db()


def published() -> list[Path]:
    folder = Path(settings.DATA_DIR) / "adapters"
    return sorted(folder.iterdir()) if folder.exists() else []


def assert_each_is_complete() -> None:
    """A folder's name is made from the hashes of its files."""
    for folder in published():
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        assert folder.name == hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


@pytest.fixture
def no_adapters() -> None:
    """Delete the adapters of earlier tests: equal content has one folder."""
    for folder in published():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("no_adapters")
@pytest.mark.parametrize("at", range(1, MOMENTS + 2))
def test_worker_killed_while_publishing_leaves_one_adapter(
    job: Job, run: TrainingRun, tmp_path: Path, at: int
) -> None:
    status = record_until(job, tmp_path / "first", Interruption(at), shared_environment())
    assert status == (0 if at > MOMENTS else -signal.SIGKILL)
    assert_each_is_complete()
    assert Adapter.objects.count() == TrainingRun.objects.exclude(outcome="").count()
    run_next_attempt(job, tmp_path / "second")
    run.refresh_from_db()
    assert (job.state, run.outcome) == (State.SUCCEEDED, "succeeded")
    adapter = Adapter.objects.get()
    check_adapter(adapter.path(), adapter.files)
    assert published() == [adapter.path()]
    assert Evaluation.objects.count() == 2
    assert MetricSeries.objects.get(name="train/loss").points() == [(1, 2.0)]


@contextlib.contextmanager
def refusing_disk(monkeypatch: pytest.MonkeyPatch, call: str, error: str, *at: int) -> Iterator[None]:
    """Make syncs or renames fail."""
    with monkeypatch.context() as broken:
        broken.setattr(publish, "RETRY_SECONDS", 0.0)
        if call == "rename":
            broken.setattr(Path, "rename", raising(Path.rename, error, at))
        else:
            broken.setattr(os, "fsync", raising(os.fsync, error, at))
        yield


@pytest.mark.usefixtures("no_adapters")
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize(("call", "at"), [("rename", 1), ("sync", 1), ("sync", 3)])
def test_refused_write_is_tried_again(
    job: Job,
    run: TrainingRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    at: int,
    error: str,
) -> None:
    with refusing_disk(monkeypatch, call, error, at):
        record_all(job, tmp_path)
    assert job.state == State.SUCCEEDED
    check_adapter(Adapter.objects.get().path(), Adapter.objects.get().files)


@pytest.mark.usefixtures("no_adapters")
@pytest.mark.parametrize(
    ("call", "error"), [("rename", "ENOSPC"), ("rename", "EDQUOT"), ("sync", "EIO"), ("sync", "EFBIG")]
)
def test_full_disk_leaves_complete_folder_or_none(
    job: Job, run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: str
) -> None:
    with refusing_disk(monkeypatch, call, error), pytest.raises(DiskFull, match="could not be written"):
        record_all(job, tmp_path / "first")
    assert not Adapter.objects.exists()
    assert_each_is_complete()
    run_next_attempt(job, tmp_path / "second")
    assert job.state == State.SUCCEEDED
    assert published() == [Adapter.objects.get().path()]


def test_other_refusals_of_the_disk_fail_to_publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = make_artifact(tmp_path)
    with (
        refusing_disk(monkeypatch, "rename", "EACCES"),
        pytest.raises(PublishError, match="Permission denied"),
    ):
        publish_adapter(tmp_path / artifact.path, tmp_path / "shelf/one", artifact.files)


def test_damaged_adapter_is_repaired(tmp_path: Path) -> None:
    for place in ("first", "second"):
        artifact = make_artifact(tmp_path / place)
        publish_adapter(tmp_path / place / artifact.path, tmp_path / "shelf/one", artifact.files)
        check_adapter(tmp_path / "shelf/one", artifact.files)
        (tmp_path / "shelf/one" / WEIGHTS).write_bytes(b"damaged")


def test_repair_replaces_file_by_file(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "first")
    shelf = tmp_path / "shelf/one"
    publish_adapter(tmp_path / "first" / artifact.path, shelf, artifact.files)
    (shelf / WEIGHTS).write_bytes(b"damaged")
    (shelf / "stranger").touch()
    place = shelf.stat().st_ino
    with (shelf / WEIGHTS).open("rb") as opened:
        publish_adapter(tmp_path / "second" / make_artifact(tmp_path / "second").path, shelf, artifact.files)
        assert opened.read() == b"damaged"
    assert shelf.stat().st_ino == place
    assert [path.name for path in shelf.iterdir()] == [WEIGHTS]


def test_interrupted_repair_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("first", "second"):
        folder = tmp_path / place
        folder.mkdir()
        for name in ("a.parquet", "b.parquet", "c.parquet"):
            (folder / name).write_text(f"the rows of {name}")
    shelf = tmp_path / "shelf/one"
    publish_folder(tmp_path / "first", shelf)
    for name in ("a.parquet", "b.parquet"):
        (shelf / name).write_text("damaged")
    real = shutil.copy

    def refuse(source: Path, aside: Path) -> None:
        if source.name == "b.parquet":
            raise OSError(errno.EIO, "Input/output error")
        real(source, aside)

    with monkeypatch.context() as broken:
        broken.setattr(shutil, "copy", refuse)
        with pytest.raises(OSError, match="Input/output"):
            publish_folder(tmp_path / "second", shelf)
    publish_folder(tmp_path / "second", shelf)
    assert {path.name: path.read_text() for path in shelf.iterdir()} == {
        name: f"the rows of {name}" for name in ("a.parquet", "b.parquet", "c.parquet")
    }
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("header", [b"[]", b"{}", b'{"a": {"data_offsets": ["x", 0]}}', b"\xff"])
def test_broken_safetensors_header_is_refused(tmp_path: Path, header: bytes) -> None:
    weights = tmp_path / WEIGHTS
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(PublishError):
        check_safetensors(weights)


def test_equal_content_is_kept_once(tmp_path: Path) -> None:
    for place in ("first", "second"):
        artifact = make_artifact(tmp_path / place)
        publish_adapter(tmp_path / place / artifact.path, tmp_path / "shelf/one", artifact.files)
        assert not (tmp_path / place / artifact.path).exists()
    assert [path.name for path in (tmp_path / "shelf").iterdir()] == ["one"]
