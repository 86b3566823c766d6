"""Settings, Health: each finding comes with its fault and goes with it, and only keepers read them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from django.conf import settings
from django.db import OperationalError, connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries

from dashboard.models import (
    BaseModel,
    Job,
    Outbox,
    Project,
    State,
    StorageUse,
    TrainingRun,
    User,
    WorkerNode,
)
from dashboard.models.finding import Finding, Level, summary
from dashboard.models.health import database, findings
from dashboard.models.job_state import db_now
from tests.conftest import finish, make_base_model, make_user, tiny_census

GIB = 1024**3
AGO = timedelta(minutes=10)
MARK = Path(settings.DATA_DIR) / "installation-id"


def found(check: str) -> Finding:
    """What one check says now."""
    return next(finding for finding in findings() if finding.check == check)


def change(name: str, **fields: object) -> None:
    """Let a node be otherwise."""
    WorkerNode.objects.filter(name=name).update(**fields)


@pytest.fixture
def sound(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation in which everything is in order."""
    for name, queue in (("gpu0@box", "gpu"), ("cpu@box", "cpu")):
        WorkerNode.objects.register(name, queue=queue, host="box", pid=1, clock_ahead=0.1)
    WorkerNode.objects.register("dispatch@box", kind="dispatcher", host="box", pid=1)
    assert WorkerNode.objects.acquire_lead("dispatch@box")
    MARK.unlink(missing_ok=True)
    monkeypatch.setattr(settings, "BUNDLED_MODEL_DIR", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    bundled = BaseModel.objects.ensure_bundled()
    finish(bundled.inspect())
    Outbox.objects.all().delete()
    bundled.record_inspection(
        {"census": tiny_census(), "path": str(tmp_path), "sha256": "ab" * 32, "parameters": 1}
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=50 * GIB))


@pytest.fixture
def check_page(client: Client, mara: User) -> Callable[[], str]:
    """The page as Mara sees it."""
    client.force_login(mara)
    return lambda: client.get(reverse("health-index")).content.decode()


def test_all_is_in_order(sound: None, check_page: Callable[[], str]) -> None:
    assert {finding.level for finding in findings()} == {Level.OK}
    assert "Everything is in order." in check_page()
    assert "To mend" not in check_page()


@pytest.mark.parametrize(("queue", "name"), [("gpu", "gpu0@box"), ("cpu", "cpu@box")])
def test_a_queue_without_a_worker_is_a_problem(
    sound: None, monkeypatch: pytest.MonkeyPatch, queue: str, name: str
) -> None:
    monkeypatch.setattr(settings, "REDIS_URL", "")
    change(name, stopped_at=db_now())
    finding = found(f"worker-{queue}")
    assert finding.level == Level.PROBLEM
    assert "No worker takes jobs of this kind" in finding.text
    assert finding.command == "make start"
    change(name, stopped_at=None)
    assert found(f"worker-{queue}").level == Level.OK


def test_with_a_broker_of_its_own_each_worker_has_its_own_command(
    sound: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "REDIS_URL", "redis://broker/0")
    change("gpu0@box", stopped_at=db_now())
    assert found("worker-gpu").command.startswith("celery -A workers.celery worker -P prefork -c 1 -Q gpu")


def test_one_silent_worker_of_two_is_a_warning(sound: None) -> None:
    WorkerNode.objects.register("gpu1@box", queue="gpu", host="box", pid=2)
    change("gpu1@box", heartbeat_at=db_now(-AGO))
    finding = found("worker-gpu")
    assert finding.level == Level.WARNING
    assert "gpu1@box" in finding.text
    change("gpu1@box", heartbeat_at=db_now(-timedelta(days=2)))
    assert found("worker-gpu").level == Level.OK, "one that was removed for good is forgotten"


def test_a_worker_that_shuts_down_is_a_warning(sound: None) -> None:
    change("gpu0@box", draining=True)
    assert found("worker-gpu").level == Level.WARNING
    assert "takes no new job" in found("worker-gpu").text
    change("gpu0@box", draining=False)
    assert found("worker-gpu").level == Level.OK


def test_a_dead_dispatcher_is_a_problem(sound: None) -> None:
    change("dispatch@box", heartbeat_at=db_now(-AGO))
    assert found("dispatcher").level == Level.PROBLEM
    assert "No dispatcher answers" in found("dispatcher").text
    change("dispatch@box", heartbeat_at=db_now())
    assert found("dispatcher").level == Level.OK


def test_a_dispatcher_that_does_not_lead_is_a_problem(sound: None) -> None:
    change("dispatch@box", leads_until=db_now(-AGO))
    assert found("dispatcher").level == Level.PROBLEM
    assert "none leads" in found("dispatcher").text
    assert WorkerNode.objects.acquire_lead("dispatch@box")
    assert found("dispatcher").level == Level.OK


def test_wake_ups_that_stay_unsent_are_a_problem(sound: None, run: TrainingRun) -> None:
    Outbox.objects.exclude(job=run.job).delete()
    assert found("wake-ups").level == Level.OK, "it is a moment old"
    Outbox.objects.update(created_at=db_now(-timedelta(seconds=31)))
    finding = found("wake-ups")
    assert finding.level == Level.PROBLEM
    assert finding.text.startswith("1 wake-up has waited")
    assert "cannot reach the broker" in finding.text
    assert finding.command.endswith("manage.py doctor")
    Outbox.objects.update(sent_at=db_now())
    assert found("wake-ups").level == Level.OK


def test_a_broker_that_does_not_answer_the_dispatcher_is_a_problem(sound: None) -> None:
    change("dispatch@box", broker_silent_since=db_now())
    finding = found("wake-ups")
    assert finding.level == Level.PROBLEM
    assert "does not answer the dispatcher. No job is lost" in finding.text
    change("dispatch@box", broker_silent_since=None)
    assert found("wake-ups").level == Level.OK


def test_a_paused_worker_is_a_warning(sound: None) -> None:
    WorkerNode.objects.get(name="gpu0@box").pause(by="Mara")
    assert found("paused").level == Level.WARNING
    assert "gpu0@box" in found("paused").text
    WorkerNode.objects.get(name="gpu0@box").resume()
    assert found("paused").level == Level.OK


def test_a_data_folder_of_another_database_is_a_problem(sound: None) -> None:
    MARK.write_text("another database wrote this\n")
    assert found("data-folder").level == Level.PROBLEM
    assert "delete the file installation-id" in found("data-folder").mend
    MARK.unlink()
    assert found("data-folder").level == Level.OK


def test_folders_that_no_row_knows_are_a_warning(sound: None) -> None:
    StorageUse.objects.create(kind="adapters", unknown_count=1, biggest=[["ee" * 32, "", 5]])
    finding = found("unknown-folders")
    assert finding.level == Level.WARNING
    assert f"adapters/{'ee' * 32}" in finding.text
    StorageUse.objects.all().delete()
    assert found("unknown-folders").level == Level.OK


def test_without_a_dispatcher_the_broker_is_not_blamed(sound: None, run: TrainingRun) -> None:
    change("dispatch@box", stopped_at=db_now())
    Outbox.objects.update(created_at=db_now(-AGO))
    assert "wait for a dispatcher" in found("wake-ups").text
    assert "cannot reach the broker" not in found("wake-ups").text


@pytest.mark.parametrize(
    ("free", "level"),
    [
        (2 * GIB, Level.OK),
        (2 * GIB - 1, Level.WARNING),
        (GIB, Level.WARNING),
        (GIB - 1, Level.PROBLEM),
    ],
)
def test_a_full_disk_is_noticed_early(
    sound: None, monkeypatch: pytest.MonkeyPatch, free: int, level: Level
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=free))
    finding = found("disk")
    assert finding.level == level
    assert bool(finding.command) == (level != Level.OK)


@pytest.mark.parametrize(("seconds", "words"), [(600.2, "600 s ahead"), (-5.6, "6 s behind")])
def test_a_clock_that_is_wrong_is_a_warning(sound: None, seconds: float, words: str) -> None:
    change("gpu0@box", clock_ahead=seconds)
    assert found("clocks").level == Level.WARNING
    assert f"The clock of gpu0@box is {words}" in found("clocks").text
    change("gpu0@box", clock_ahead=4.9)
    assert found("clocks").level == Level.OK


def test_missing_migrations_are_a_problem_that_comes_first(sound: None) -> None:
    recorder = MigrationRecorder(connection)
    newest = max(name for app, name in recorder.applied_migrations() if app == "dashboard")
    recorder.record_unapplied("dashboard", newest)
    finding = findings()[0]
    assert (finding.check, finding.level) == ("tables", Level.PROBLEM)
    assert finding.text.startswith("1 migration is missing")
    assert finding.command.endswith("manage.py migrate")
    assert {one.check for one in findings()} == {"tables", "disk"}, "rows are not read from old tables"
    recorder.record_applied("dashboard", newest)
    assert found("tables").level == Level.OK


def test_a_database_that_is_away_is_a_finding(sound: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as outage:
        broken = Mock(side_effect=OperationalError("gone"))
        outage.setattr("dashboard.models.health.MigrationExecutor", broken)
        assert found("tables").level == Level.PROBLEM
        assert "does not answer" in found("tables").text
    assert found("tables").level == Level.OK


def test_a_bundled_model_without_files_is_a_problem(sound: None, project: Project) -> None:
    config = settings.BUNDLED_MODEL_DIR / "config.json"
    config.unlink()
    finding = found("bundled-model")
    assert (finding.level, finding.command) == (Level.PROBLEM, "python3 dashboard/machine.py start")
    make_base_model(project)
    assert found("bundled-model").level == Level.WARNING, "there is another model to train on"
    config.write_text("{}")
    assert found("bundled-model").level == Level.OK


def test_a_bundled_model_that_waits_for_its_inspection_is_a_warning(sound: None) -> None:
    BaseModel.objects.filter(source="bundled").update(census=None, job=None)
    assert found("bundled-model").level == Level.WARNING
    assert "not been inspected yet" in found("bundled-model").text


def test_a_bundled_model_that_failed_its_inspection_is_a_problem(sound: None) -> None:
    BaseModel.objects.filter(source="bundled").update(census=None)
    bundled = BaseModel.objects.get(source="bundled")
    finish(bundled.inspect(), State.FAILED)
    assert found("bundled-model").level == Level.PROBLEM
    assert "Open Settings, Base models, SmolLM2" in found("bundled-model").mend


def test_a_job_that_nobody_takes_from_its_dead_worker_is_a_problem(sound: None, run: TrainingRun) -> None:
    job = run.job
    assert job
    job.move("claim", attempt=1, worker="gpu0@box", lease_until=db_now(-timedelta(seconds=119)))
    assert found("jobs").level == Level.OK, "the dispatcher has some seconds left"
    Job.objects.filter(pk=job.pk).update(lease_until=db_now(-timedelta(seconds=121)))
    assert found("jobs").level == Level.PROBLEM
    assert f"Fine-tune {job.pk}" in found("jobs").text
    job.refresh_from_db()
    job.recover("Its worker was not heard from in time.")
    assert found("jobs").level == Level.OK


def test_many_names_are_cut_short(sound: None) -> None:
    for number in range(9):
        WorkerNode.objects.register(f"gpu{number}@far", queue="gpu", host="far", pid=number)
    change("gpu0@box", heartbeat_at=db_now(-AGO))
    WorkerNode.objects.filter(host="far").update(heartbeat_at=db_now(-AGO))
    assert "and 5 more" in found("worker-gpu").text


def test_sqlite_on_several_machines_is_a_problem(sound: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboard.models.health.connection", Mock(vendor="sqlite"))
    WorkerNode.objects.register("gpu0@far", queue="gpu", host="far", pid=1)
    assert database().level == Level.PROBLEM
    assert "box, far" in database().text
    change("gpu0@far", stopped_at=db_now())
    assert database().level == Level.OK


def test_a_database_server_may_have_many_machines(sound: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboard.models.health.connection", Mock(vendor="postgresql"))
    WorkerNode.objects.register("gpu0@far", queue="gpu", host="far", pid=1)
    assert database().level == Level.OK


def test_the_worst_comes_first_and_is_counted(sound: None) -> None:
    change("gpu0@box", stopped_at=db_now())
    change("cpu@box", clock_ahead=60)
    levels = [finding.level for finding in findings()]
    assert levels[:2] == [Level.PROBLEM, Level.WARNING]
    assert set(levels[2:]) == {Level.OK}
    assert summary(findings()) == "1 problem and 1 warning."


def test_the_page_says_what_is_wrong_and_how_to_mend_it(sound: None, check_page: Callable[[], str]) -> None:
    change("gpu0@box", stopped_at=db_now())
    page = check_page()
    for words in (
        "1 problem.",
        "To mend",
        "No worker takes jobs of this kind",
        'data-copy="command-worker-gpu"',
    ):
        assert words in page
    change("gpu0@box", stopped_at=None)
    assert "To mend" not in check_page()


def test_the_page_shows_no_path_of_the_server(
    sound: None, check_page: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=GIB // 2))
    (settings.BUNDLED_MODEL_DIR / "config.json").unlink()
    for path in (settings.DATA_DIR, settings.BUNDLED_MODEL_DIR, settings.BASE_DIR):
        assert str(path) not in check_page()


def test_the_page_opens_without_a_broker_and_with_few_queries(
    sound: None, client: Client, mara: User, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    assert not settings.BROKER_SOCKET.exists()
    client.force_login(mara)
    with django_assert_max_num_queries(32):
        assert client.get(reverse("health-index")).status_code == 200


@pytest.mark.parametrize("person", ["vera", "ed"])
def test_only_managers_may_read_it(client: Client, request: pytest.FixtureRequest, person: str) -> None:
    client.force_login(request.getfixturevalue(person))
    assert client.get(reverse("health-index")).status_code == 403
    assert reverse("health-index") not in client.get(reverse("settings")).content.decode()


def test_settings_lead_a_manager_to_it(client: Client, mara: User) -> None:
    client.force_login(mara)
    assert f'href="{reverse("health-index")}"' in client.get(reverse("settings")).content.decode()


def test_a_superuser_without_a_project_reads_it(sound: None, client: Client) -> None:
    client.force_login(User.objects.create_superuser("root@example.org"))
    assert client.get(reverse("health-index")).status_code == 200
    assert reverse("health-index") in client.get(reverse("settings")).content.decode()


def test_somebody_without_a_project_may_not(client: Client, db: Any) -> None:
    client.force_login(make_user("new@example.org"))
    assert client.get(reverse("health-index")).status_code == 403
