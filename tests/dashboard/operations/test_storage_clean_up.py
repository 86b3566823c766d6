"""Clean-ups of the data folder: the request, and what the dispatcher deletes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, CleanUp, Job, Project, State, TrainingRun, User
from dashboard.models.jobs.job_state import db_now
from tests.conftest import finish, make_base_model, make_dataset, make_run

MARK = Path(settings.DATA_DIR) / "installation-id"


@pytest.fixture(autouse=True)
def unmarked() -> Iterator[None]:
    """Remove the database's mark, because all tests share one data folder."""
    MARK.unlink(missing_ok=True)
    yield
    MARK.unlink(missing_ok=True)


@pytest.fixture
def manager(client: Client, mara: User) -> Client:
    client.force_login(mara)
    return client


def request_clean_up(client: Client, scope: str = "project") -> int:
    """Return the status of the answer."""
    return client.post(reverse("storage-clean-up"), {"scope": scope}).status_code


def run_clean_up() -> CleanUp:
    """Run the requested clean-up, as the dispatcher does."""
    clean_up = CleanUp.objects.open().get()
    list(clean_up.run())
    clean_up.refresh_from_db()
    return clean_up


def make_checkpoints(job: Job | None) -> Path:
    assert job
    path = job.checkpoint_folder() / "000001"
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_text("{}")
    return path.parent


@pytest.fixture
def failed(run: TrainingRun) -> Path:
    """Return the checkpoints of a failed run."""
    assert run.job
    finish(run.job, State.FAILED)
    return make_checkpoints(run.job)


def test_checkpoints_of_ended_runs_are_deleted(manager: Client, mara: User, failed: Path) -> None:
    assert [request_clean_up(manager), request_clean_up(manager)] == [302, 302]
    clean_up = run_clean_up()
    assert CleanUp.objects.count() == 1, "the second request changes nothing"
    assert not failed.exists()
    assert (clean_up.requested_by, clean_up.freed_bytes) == (mara, 2)
    assert clean_up.done_at


def test_checkpoints_of_waiting_run_are_kept(manager: Client, run: TrainingRun) -> None:
    folder = make_checkpoints(run.job)
    request_clean_up(manager)
    run_clean_up()
    assert folder.exists()


@pytest.mark.parametrize(
    "change",
    [{"state": State.QUEUED, "finished_at": None}, {"finished_at": db_now(timedelta(hours=1))}],
    ids=["resumed", "ended later"],
)
def test_run_that_changed_after_the_request_is_kept(
    manager: Client, failed: Path, run: TrainingRun, change: dict[str, object]
) -> None:
    request_clean_up(manager)
    Job.objects.filter(pk=run.job_id).update(**change)
    run_clean_up()
    assert failed.exists()


def test_other_projects_are_kept(manager: Client, failed: Path, other_project: Project, otto: User) -> None:
    theirs = make_run(other_project, make_dataset(other_project, "Foreign"), make_base_model(other_project))
    assert theirs.job
    finish(theirs.job, State.FAILED)
    folder = make_checkpoints(theirs.job)
    request_clean_up(manager)
    run_clean_up()
    assert folder.exists()
    assert not failed.exists()


def test_superuser_cleans_up_all_projects(client: Client, failed: Path) -> None:
    client.force_login(User.objects.create_superuser("root@example.org"))
    assert request_clean_up(client, "project") == 403, "the superuser has no project"
    assert request_clean_up(client, "all") == 302
    run_clean_up()
    assert not failed.exists()


def test_manager_cannot_clean_up_all_projects(manager: Client, failed: Path) -> None:
    assert request_clean_up(manager, "all") == 403
    assert not CleanUp.objects.exists()


def test_prepared_downloads_are_deleted(manager: Client, adapter: Adapter) -> None:
    archive = Path(settings.DATA_DIR) / "archives" / f"{adapter.pk}-abc.zip"
    archive.parent.mkdir(exist_ok=True)
    archive.write_bytes(b"zip")
    request_clean_up(manager)
    assert run_clean_up().freed_bytes == 3
    assert not archive.exists()


def test_files_of_another_database_are_kept(manager: Client, mara: User, failed: Path) -> None:
    MARK.write_text("another database wrote this\n")
    request_clean_up(manager)
    assert not CleanUp.objects.exists(), "the page refuses"
    clean_up = CleanUp.objects.request(None, mara)
    list(clean_up.run())
    clean_up.refresh_from_db()
    assert failed.exists()
    assert clean_up.done_at is None
    assert not CleanUp.objects.due().exists(), "the dispatcher does not retry it"
    MARK.unlink()
    assert CleanUp.objects.due().get() == clean_up
    run_clean_up()
    assert not failed.exists()
