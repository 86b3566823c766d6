"""Asking for a clean-up, and what it takes away."""

from __future__ import annotations

import os
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
    """All tests share one data folder, and this database goes with the test."""
    MARK.unlink(missing_ok=True)
    yield
    MARK.unlink(missing_ok=True)


@pytest.fixture
def foreign(unmarked: None) -> None:
    """The data folder belongs to another database."""
    MARK.write_text("another database wrote this\n")


def ask(client: Client, scope: str = "project") -> int:
    """The status of the answer to the button."""
    return client.post(reverse("storage-clean-up"), {"scope": scope}).status_code


def checkpoints_of(job: Job | None) -> Path:
    assert job
    path = job.checkpoint_folder() / "000001"
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_text("{}")
    return path.parent


def carry_out() -> CleanUp:
    """What the dispatcher does with the wish."""
    wish = CleanUp.objects.open().get()
    for _step in wish.run():
        pass
    wish.refresh_from_db()
    return wish


@pytest.fixture
def failed(run: TrainingRun) -> Path:
    """The checkpoints of a run that has failed."""
    assert run.job
    finish(run.job, State.FAILED)
    return checkpoints_of(run.job)


def test_it_removes_the_checkpoints_of_ended_runs(client: Client, mara: User, failed: Path) -> None:
    client.force_login(mara)
    assert ask(client) == 302
    wish = carry_out()
    assert not failed.exists()
    assert (wish.requested_by, wish.freed_bytes) == (mara, 2)
    assert wish.done_at


def test_it_spares_what_is_at_work_or_waits(client: Client, mara: User, run: TrainingRun) -> None:
    folder = checkpoints_of(run.job)
    client.force_login(mara)
    ask(client)
    carry_out()
    assert folder.exists()


def test_it_spares_a_run_that_was_resumed_meanwhile(
    client: Client, mara: User, failed: Path, run: TrainingRun
) -> None:
    client.force_login(mara)
    ask(client)
    Job.objects.filter(pk=run.job_id).update(state=State.QUEUED, finished_at=None)
    carry_out()
    assert failed.exists()


def test_it_spares_a_run_that_ended_after_the_wish(
    client: Client, mara: User, failed: Path, run: TrainingRun
) -> None:
    client.force_login(mara)
    ask(client)
    Job.objects.filter(pk=run.job_id).update(finished_at=db_now(timedelta(hours=1)))
    carry_out()
    assert failed.exists(), "nobody has read that it would go"


def test_it_spares_other_projects(
    client: Client, mara: User, failed: Path, other_project: Project, otto: User
) -> None:
    theirs = make_run(other_project, make_dataset(other_project, "Foreign"), make_base_model(other_project))
    assert theirs.job
    finish(theirs.job, State.FAILED)
    folder = checkpoints_of(theirs.job)
    client.force_login(mara)
    ask(client)
    carry_out()
    assert folder.exists()
    assert not failed.exists()


def test_a_superuser_clears_all_projects(client: Client, failed: Path) -> None:
    client.force_login(User.objects.create_superuser("root@example.org"))
    assert ask(client, "project") == 403, "there is no project of theirs"
    assert ask(client, "all") == 302
    carry_out()
    assert not failed.exists()


def test_a_manager_cannot_clear_everything(client: Client, mara: User, failed: Path) -> None:
    client.force_login(mara)
    assert ask(client, "all") == 403
    assert not CleanUp.objects.exists()


@pytest.mark.parametrize("person", ["vera", "ed"])
def test_only_managers_ask(client: Client, request: pytest.FixtureRequest, person: str) -> None:
    client.force_login(request.getfixturevalue(person))
    assert ask(client) == 403


def test_asking_twice_is_asking_once(client: Client, mara: User) -> None:
    client.force_login(mara)
    assert [ask(client), ask(client)] == [302, 302]
    assert CleanUp.objects.count() == 1


def test_it_removes_prepared_downloads(client: Client, mara: User, adapter: Adapter) -> None:
    archive = Path(settings.DATA_DIR) / "archives" / f"{adapter.pk}-abc.zip"
    archive.parent.mkdir(exist_ok=True)
    archive.write_bytes(b"zip")
    os.utime(archive)
    client.force_login(mara)
    ask(client)
    assert carry_out().freed_bytes == 3
    assert not archive.exists()


def test_nothing_of_another_database_is_deleted(
    client: Client, mara: User, failed: Path, foreign: None
) -> None:
    wish = CleanUp.objects.request(None, mara)
    for _step in wish.run():
        pass
    wish.refresh_from_db()
    assert failed.exists()
    assert wish.done_at is None
    assert not CleanUp.objects.due().exists(), "the dispatcher does not try it again and again"
    MARK.unlink()
    assert CleanUp.objects.due().get() == wish, "once the right folder is back it is carried out"
    carry_out()
    assert not failed.exists()


def test_a_clean_up_of_another_databases_folder_is_refused(
    client: Client, mara: User, failed: Path, foreign: None
) -> None:
    client.force_login(mara)
    answer = client.post(reverse("storage-clean-up"), {"scope": "project"}, follow=True)
    assert (
        "Nothing was deleted because the data folder belongs to another database." in answer.content.decode()
    )
    assert not CleanUp.objects.exists()
