"""Retention deletes what has expired, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
from django.conf import settings
from django.contrib.sessions.models import Session
from django.utils import timezone

from dashboard.models import (
    Adapter,
    Dataset,
    DatasetVersion,
    Installation,
    Job,
    Outbox,
    Project,
    Publication,
    State,
    TrainingRun,
    User,
    WorkerNode,
)
from dashboard.models.jobs.job_state import db_now
from dashboard.models.operations.retention import LOG_GAP, sweep
from tests.conftest import make_dataset
from tests.workers.conftest import claim
from tests.workers.publishing import SUCCEEDED, make_artifact
from workers.supervision.recorders import TrainRecorder

DAY = timedelta(days=1)
MARK = Path(settings.DATA_DIR) / "installation-id"


@pytest.fixture(autouse=True)
def unmarked(db: None) -> Iterator[None]:
    """Each test has a database of its own, but all of them share one data folder."""
    MARK.unlink(missing_ok=True)
    yield
    MARK.unlink(missing_ok=True)


def clear() -> None:
    """Run one complete round."""
    for _step in sweep():
        pass


def make(*parts: str, folder: bool = True, text: str = "content") -> Path:
    """A folder with a file, or a file, in the data folder, as old as can be."""
    path = Path(settings.DATA_DIR).joinpath(*parts)
    if folder:
        path.mkdir(parents=True, exist_ok=True)
        (path / "file").write_text(text)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    os.utime(path, (0, 0))
    return path


def end(job: Job | None, state: State, ago: timedelta = timedelta(), **fields: object) -> Job:
    """Let a job have ended some time ago."""
    assert job
    Job.objects.filter(pk=job.pk).update(state=state, finished_at=db_now(-ago), **fields)
    job.refresh_from_db()
    return job


def checkpoint_of(job: Job | None) -> Path:
    assert job
    return make("checkpoints", f"job-{job.pk}")


def begin(kind: Publication.Kind, name: str, ago: timedelta) -> Path:
    """A folder that was published some time ago."""
    Publication.objects.begin(kind, name)
    Publication.objects.filter(folder=name).update(begun_at=db_now(-ago))
    return make(kind, name)


def test_checkpoints_of_unfinished_jobs_stay(run: TrainingRun) -> None:
    folder = checkpoint_of(run.job)
    clear()
    claim("gpu").interrupt("The worker died.")
    clear()
    assert folder.exists()


@pytest.mark.parametrize(
    ("state", "keep", "days", "stays"),
    [
        (State.SUCCEEDED, "", 0, False),
        (State.CANCELLED, "", 0, False),
        (State.CANCELLED, "checkpoint", 13, True),
        (State.CANCELLED, "checkpoint", 15, False),
        (State.FAILED, "", 13, True),
        (State.FAILED, "", 15, False),
    ],
)
def test_checkpoints_stay_as_long_as_a_run_can_be_resumed(
    run: TrainingRun, state: State, keep: str, days: int, stays: bool
) -> None:
    folder = checkpoint_of(end(run.job, state, timedelta(days=days), keep=keep))
    clear()
    assert folder.exists() == stays


def test_retention_of_checkpoints_can_be_set(run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "KEEP_CHECKPOINTS_DAYS", 1)
    folder = checkpoint_of(end(run.job, State.FAILED, 2 * DAY))
    clear()
    assert not folder.exists()


@pytest.mark.parametrize("field", ["dataset_version", "validation_version"])
def test_an_expired_file_goes_unless_something_uses_it(
    run: TrainingRun, project: Project, field: str
) -> None:
    used, _unused, kept, waiting = (
        make_dataset(project, name, ready=name != "Waiting").versions.get()
        for name in ("Used", "Unused", "Kept", "Waiting")
    )
    past, future = timezone.now() - DAY, timezone.now() + DAY
    DatasetVersion.objects.exclude(pk=kept.pk).update(expires_at=past)
    DatasetVersion.objects.filter(pk=kept.pk).update(expires_at=future)
    TrainingRun.objects.update(**{field: used})
    clear()
    gone = {run.dataset_version_id} if field == "dataset_version" else set()
    left = set(DatasetVersion.objects.values_list("pk", flat=True))
    assert left == {run.dataset_version_id, used.pk, kept.pk, waiting.pk} - gone
    assert not Dataset.objects.filter(name="Unused").exists()
    TrainingRun.objects.all().delete()
    clear()
    assert not DatasetVersion.objects.filter(pk=used.pk).exists()


def test_a_dataset_stays_for_its_other_versions(project: Project) -> None:
    first, second = (make_dataset(project).versions.latest("pk") for _version in range(2))
    DatasetVersion.objects.filter(pk=first.pk).update(expires_at=timezone.now() - DAY)
    clear()
    assert Dataset.objects.get().newest() == second


def test_interrupted_deletion_is_completed(run: TrainingRun) -> None:
    half = make("checkpoints", f".removing-job-{run.job_id}")
    clear()
    assert not half.exists()


def test_a_damaged_checkpoint_stays_for_a_day(run: TrainingRun) -> None:
    checkpoint_of(run.job)
    old = make("checkpoints", f"job-{run.job_id}", "damaged-000001")
    new = make("checkpoints", f"job-{run.job_id}", "damaged-000002")
    os.utime(new)
    clear()
    assert (old.exists(), new.exists()) == (False, True)


def test_work_folders_of_ended_attempts_are_deleted(run: TrainingRun) -> None:
    job = claim("gpu")
    mine = make("work", f"job-{job.pk}-{job.attempt}")
    other = make("work", f"job-{job.pk}-{job.attempt + 1}")
    clear()
    assert (mine.exists(), other.exists()) == (True, False)


def test_expired_logs_are_deleted(run: TrainingRun, project: Project) -> None:
    ended = end(run.job, State.SUCCEEDED, 91 * DAY)
    recent = end(Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None), State.FAILED, 89 * DAY)
    at_work = Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None)
    files = [make("logs", f"job-{job.pk}.log", folder=False) for job in (ended, recent, at_work)]
    clear()
    assert [file.exists() for file in files] == [False, True, True]


def test_large_log_loses_its_middle(run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "LOG_LIMIT_BYTES", 4000)
    log = make("logs", f"job-{run.job_id}.log", folder=False, text="")
    with log.open("ab", buffering=0) as writer:  # as the supervisor opens it for the engine
        for number in range(2000):
            writer.write(f"line {number}\n".encode())
        clear()
        writer.write(b"the last line\n")
    text = log.read_bytes()
    assert text.startswith(b"line 0\n")
    assert LOG_GAP in text
    assert text.endswith(b"line 1999\nthe last line\n")
    assert len(text) < 4000


def test_unneeded_uploads_are_deleted(project: Project, ed: User) -> None:
    uploads = {}
    for name, state in (("stopped", State.CANCELLED), ("imported", State.SUCCEEDED), ("asked", State.FAILED)):
        uploads[name] = make("uploads", name, folder=False)
        version = Dataset.objects.named(project, name, ed).add_version(uploads[name], name, by=ed)
        end(version.job, state)
    stray, fresh = (make("uploads", name, folder=False) for name in ("stray.upload", "fresh.upload"))
    os.utime(fresh)
    clear()
    assert [name for name, path in uploads.items() if path.exists()] == ["asked"]
    assert (stray.exists(), fresh.exists()) == (False, True)


def test_prepared_downloads_are_deleted_after_a_week(db: None) -> None:
    old, new = (make("archives", f"{number}-abc.zip", folder=False) for number in (1, 2))
    os.utime(new)
    clear()
    assert (old.exists(), new.exists()) == (False, True)


def test_counts_of_unused_tokens_are_deleted_after_a_day(db: None) -> None:
    old, new = (make("run", "calls", f"reads-{digest}", folder=False) for digest in ("aa", "bb"))
    os.utime(new)
    clear()
    assert (old.exists(), new.exists()) == (False, True)


def test_orphaned_folder_is_deleted_after_a_day(db: None) -> None:
    adapter = begin(Publication.Kind.ADAPTER, "aa" * 32, 2 * DAY)
    dataset = begin(Publication.Kind.DATASET, "bb" * 32, 2 * DAY)
    clear()
    assert not adapter.exists()
    assert not dataset.exists()
    assert not Publication.objects.exists()


def test_recent_orphaned_folder_stays(db: None) -> None:
    noted = begin(Publication.Kind.ADAPTER, "aa" * 32, timedelta(hours=23))
    written = begin(Publication.Kind.ADAPTER, "cc" * 32, 2 * DAY)
    os.utime(written)
    clear()
    assert noted.exists()
    assert written.exists()


def test_referenced_folder_stays(run: TrainingRun, dataset: Dataset) -> None:
    adapter = begin(Publication.Kind.ADAPTER, "dd" * 32, 30 * DAY)
    Adapter.objects.publish(run, "dd" * 32, {"adapter_model.safetensors": "ef" * 32}, 2)
    version = dataset.newest()
    assert version
    splits = begin(Publication.Kind.DATASET, version.sha256, 30 * DAY)
    clear()
    assert adapter.exists()
    assert splits.exists()


def test_folder_of_another_database_stays(db: None) -> None:
    unknown = make("adapters", "ee" * 32)
    clear()
    assert unknown.exists(), "it may belong to the database that this one was copied from"


def test_a_new_database_deletes_no_file_of_the_old_one(project: Project) -> None:
    clear()
    Installation.objects.update(key="another database wrote this")
    paths = [
        make("checkpoints", "job-999"),
        make("work", "job-999-1"),
        make("logs", "job-999.log", folder=False),
    ]
    orphan = begin(Publication.Kind.ADAPTER, "aa" * 32, 2 * DAY)
    assert not Installation.objects.is_at_home()
    clear()
    assert all(path.exists() for path in [*paths, orphan])
    MARK.unlink()  # what the health page says to do when the old files are not needed
    clear()
    assert not any(path.exists() for path in [*paths, orphan])


def test_wrong_clock_deletes_nothing(db: None) -> None:
    WorkerNode.objects.register(
        "dispatch@box", kind="dispatcher", host="box", pid=1, clock_ahead=86_400 * 365
    )
    assert WorkerNode.objects.acquire_lead("dispatch@box")
    folder = make("work", "job-999-1")
    clear()
    assert folder.exists()
    WorkerNode.objects.update(clock_ahead=0.0)
    clear()
    assert not folder.exists()


def test_links_are_neither_followed_nor_deleted(db: None, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("content")
    os.utime(precious, (0, 0))
    (Path(settings.DATA_DIR) / "work").mkdir(exist_ok=True)
    link = Path(settings.DATA_DIR) / "work" / "job-998-1"
    link.symlink_to(precious)
    os.utime(link, (0, 0), follow_symlinks=False)
    inside = make("work", "job-997-1")
    (inside / "link").symlink_to(precious)
    os.utime(inside, (0, 0))
    clear()
    assert not inside.exists()
    assert link.is_symlink()
    assert (precious / "file").exists()
    link.unlink()


def test_linked_folder_is_left_alone(db: None, tmp_path: Path) -> None:
    logs, moved = Path(settings.DATA_DIR) / "logs", tmp_path / "logs"
    make("logs", "job-999.log", folder=False)
    logs.rename(moved)
    logs.symlink_to(moved)
    os.utime(moved / "job-999.log", (0, 0))
    clear()
    assert (moved / "job-999.log").exists()
    logs.unlink()


def test_expired_rows_are_deleted(project: Project, run: TrainingRun) -> None:
    sent, unsent = Outbox.objects.create(job=run.job), Outbox.objects.create(job=run.job)
    Outbox.objects.filter(pk=sent.pk).update(sent_at=db_now(-2 * DAY))
    Session.objects.create(session_key="old", session_data="", expire_date=timezone.now() - 2 * DAY)
    Session.objects.create(session_key="new", session_data="", expire_date=timezone.now() + DAY)
    for name, kind, ago in (("d1", "dispatcher", 2), ("d2", "dispatcher", 0), ("w", "worker", 2)):
        WorkerNode.objects.register(name, kind=kind, host="box", pid=1)
        WorkerNode.objects.filter(name=name).update(heartbeat_at=db_now(-ago * DAY))
    clear()
    assert not Outbox.objects.filter(pk=sent.pk).exists()
    assert Outbox.objects.filter(pk=unsent.pk).exists()
    assert Session.objects.get().session_key == "new"
    assert set(WorkerNode.objects.values_list("name", flat=True)) == {"d2", "w"}


def test_deletion_yields_after_each_folder(project: Project, ed: User) -> None:
    for number in range(20):
        make("work", f"job-{9000 + number}-1")
    make_dataset(project, by=ed)
    steps = sweep()
    gone = []
    for _step in steps:
        gone.append(
            sum(
                not path.exists()
                for path in (Path(settings.DATA_DIR) / "work" / f"job-{9000 + n}-1" for n in range(20))
            )
        )
    assert set(range(1, 20)) <= set(gone), "one folder for each step"


@pytest.mark.parametrize("again", [True, False])
def test_crash_between_rename_and_row_leaves_no_lasting_orphan(
    run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    job = claim("gpu")
    job.move("progress")
    with monkeypatch.context() as crash:
        crash.setattr(Adapter.objects, "publish", Mock(side_effect=SystemExit))
        with pytest.raises(SystemExit):
            end_arm(job, tmp_path / "first")
    publication = Publication.objects.get()
    assert publication.path().is_dir()
    assert not Adapter.objects.exists()
    clear()
    assert publication.path().is_dir(), "the next attempt may come yet"
    if again:
        end_arm(job, tmp_path / "second")
    Publication.objects.update(begun_at=db_now(-2 * DAY))
    os.utime(publication.path(), (0, 0))
    clear()
    assert publication.path().is_dir() == again
    assert [adapter.path() for adapter in Adapter.objects.all()] == [publication.path()] * again


def end_arm(job: Job, folder: Path) -> None:
    """Record the end of an arm."""
    folder.mkdir()
    recorder = TrainRecorder(job, folder)
    recorder.record(make_artifact(folder))
    recorder.record(SUCCEEDED)
