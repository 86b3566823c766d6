"""Settings, Health: each check reports its problem, and only administrators read them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
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
    TrainingRun,
    User,
    WorkerNode,
)
from dashboard.models.jobs.job_state import db_now
from dashboard.models.operations.health import check_database, run_health_checks
from dashboard.models.operations.health_check import HealthCheck, Level, summarize
from tests.conftest import finish, make_base_model, make_user, tiny_census

GIB = 1024**3
AGO = timedelta(minutes=10)
MARK = Path(settings.DATA_DIR) / "installation-id"


def result(code: str) -> HealthCheck:
    return next(check for check in run_health_checks() if check.code == code)


def change(name: str, **fields: object) -> None:
    WorkerNode.objects.filter(name=name).update(**fields)


@pytest.fixture
def healthy(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create an installation that passes every check."""
    for name, queue in (("gpu0@box", "gpu"), ("cpu@box", "cpu"), ("serve@box", "serve")):
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
    """Return a function that gets the page as Mara."""
    client.force_login(mara)
    return lambda: client.get(reverse("health-index")).content.decode()


def test_healthy_installation_passes(healthy: None, check_page: Callable[[], str]) -> None:
    assert {check.level for check in run_health_checks()} == {Level.OK}
    assert "All checks passed." in check_page()


@pytest.mark.parametrize(("queue", "name"), [("gpu", "gpu0@box"), ("cpu", "cpu@box"), ("serve", "serve@box")])
def test_queue_without_worker_is_a_problem(
    healthy: None, monkeypatch: pytest.MonkeyPatch, queue: str, name: str
) -> None:
    monkeypatch.setattr(settings, "REDIS_URL", "")
    change(name, stopped_at=db_now())
    check = result(f"worker-{queue}")
    assert check.level == Level.PROBLEM
    assert check.command == "make start"
    change(name, stopped_at=None)
    assert result(f"worker-{queue}").level == Level.OK


def test_command_starts_one_worker_with_external_broker(
    healthy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "REDIS_URL", "redis://broker/0")
    change("gpu0@box", stopped_at=db_now())
    assert result("worker-gpu").command.startswith("celery -A workers.celery worker -P prefork -c 1 -Q gpu")


def test_one_silent_worker_of_two_is_a_warning(healthy: None) -> None:
    WorkerNode.objects.register("gpu1@box", queue="gpu", host="box", pid=2)
    change("gpu1@box", heartbeat_at=db_now(-AGO))
    check = result("worker-gpu")
    assert check.level == Level.WARNING
    assert "gpu1@box" in check.text
    change("gpu1@box", heartbeat_at=db_now(-timedelta(days=2)))
    assert result("worker-gpu").level == Level.OK, "one that was removed for good is forgotten"


def test_draining_worker_is_a_warning(healthy: None) -> None:
    change("gpu0@box", draining=True)
    assert result("worker-gpu").level == Level.WARNING
    change("gpu0@box", draining=False)
    assert result("worker-gpu").level == Level.OK


def test_missing_dispatcher_is_a_problem(healthy: None) -> None:
    change("dispatch@box", leads_until=db_now(-AGO))
    assert result("dispatcher").level == Level.PROBLEM, "it does not lead"
    change("dispatch@box", heartbeat_at=db_now(-AGO))
    assert result("dispatcher").level == Level.PROBLEM
    change("dispatch@box", heartbeat_at=db_now())
    assert WorkerNode.objects.acquire_lead("dispatch@box")
    assert result("dispatcher").level == Level.OK


def test_unsent_messages_are_a_problem(healthy: None, run: TrainingRun) -> None:
    Outbox.objects.exclude(job=run.job).delete()
    assert result("wake-ups").level == Level.OK, "it is a moment old"
    Outbox.objects.update(created_at=db_now(-timedelta(seconds=31)))
    check = result("wake-ups")
    assert check.level == Level.PROBLEM
    assert check.command.endswith("manage.py doctor")
    Outbox.objects.update(sent_at=db_now())
    assert result("wake-ups").level == Level.OK
    change("dispatch@box", broker_silent_since=db_now())
    assert result("wake-ups").level == Level.PROBLEM, "the broker is silent"


def test_paused_worker_is_a_warning(healthy: None) -> None:
    WorkerNode.objects.get(name="gpu0@box").pause(by="Mara")
    assert result("paused").level == Level.WARNING
    assert "gpu0@box" in result("paused").text
    WorkerNode.objects.get(name="gpu0@box").resume()
    assert result("paused").level == Level.OK


def test_data_folder_of_another_database_is_a_problem(healthy: None) -> None:
    MARK.write_text("another database wrote this\n")
    assert result("data-folder").level == Level.PROBLEM
    MARK.unlink()
    assert result("data-folder").level == Level.OK


@pytest.mark.parametrize(
    ("free", "level"),
    [(2 * GIB, Level.OK), (2 * GIB - 1, Level.WARNING), (GIB - 1, Level.PROBLEM)],
)
def test_disk_levels(healthy: None, monkeypatch: pytest.MonkeyPatch, free: int, level: Level) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=free))
    check = result("disk")
    assert check.level == level
    assert bool(check.command) == (level != Level.OK)


@pytest.mark.parametrize(("seconds", "words"), [(600.2, "600 s ahead"), (-5.6, "6 s behind")])
def test_wrong_clock_is_a_warning(healthy: None, seconds: float, words: str) -> None:
    change("gpu0@box", clock_ahead=seconds)
    assert result("clocks").level == Level.WARNING
    assert f"The clock of gpu0@box is {words}" in result("clocks").text
    change("gpu0@box", clock_ahead=4.9)
    assert result("clocks").level == Level.OK


def test_missing_migrations_come_first(healthy: None) -> None:
    recorder = MigrationRecorder(connection)
    newest = max(name for app, name in recorder.applied_migrations() if app == "dashboard")
    recorder.record_unapplied("dashboard", newest)
    check = run_health_checks()[0]
    assert (check.code, check.level) == ("tables", Level.PROBLEM)
    assert check.command.endswith("manage.py migrate")
    assert {check.code for check in run_health_checks()} == {"tables", "disk"}, (
        "rows are not read from old tables"
    )
    recorder.record_applied("dashboard", newest)
    assert result("tables").level == Level.OK


def test_unreachable_database_is_a_problem(healthy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as outage:
        broken = Mock(side_effect=OperationalError("gone"))
        outage.setattr("dashboard.models.operations.health.MigrationExecutor", broken)
        assert result("tables").level == Level.PROBLEM
    assert result("tables").level == Level.OK


def test_missing_bundled_model_is_a_problem(healthy: None, project: Project) -> None:
    config = settings.BUNDLED_MODEL_DIR / "config.json"
    config.unlink()
    check = result("bundled-model")
    assert (check.level, check.command) == (Level.PROBLEM, "python3 dashboard/launcher/machine.py start")
    make_base_model(project)
    assert result("bundled-model").level == Level.WARNING, "there is another model to train on"
    config.write_text("{}")
    assert result("bundled-model").level == Level.OK


def test_bundled_model_must_be_inspected(healthy: None) -> None:
    BaseModel.objects.filter(source="bundled").update(census=None, job=None)
    assert result("bundled-model").level == Level.WARNING
    finish(BaseModel.objects.get(source="bundled").inspect(), State.FAILED)
    assert result("bundled-model").level == Level.PROBLEM


def test_job_of_dead_worker_is_a_problem(healthy: None, run: TrainingRun) -> None:
    job = run.job
    assert job
    job.move("claim", attempt=1, worker="gpu0@box", lease_until=db_now(-timedelta(seconds=119)))
    assert result("jobs").level == Level.OK, "the dispatcher has some seconds left"
    Job.objects.filter(pk=job.pk).update(lease_until=db_now(-timedelta(seconds=121)))
    assert result("jobs").level == Level.PROBLEM
    assert f"Fine-tune {job.pk}" in result("jobs").text
    job.refresh_from_db()
    job.recover("Its worker was not heard from in time.")
    assert result("jobs").level == Level.OK


def test_long_lists_of_names_are_shortened(healthy: None) -> None:
    for number in range(9):
        WorkerNode.objects.register(f"gpu{number}@far", queue="gpu", host="far", pid=number)
    change("gpu0@box", heartbeat_at=db_now(-AGO))
    WorkerNode.objects.filter(host="far").update(heartbeat_at=db_now(-AGO))
    assert "and 5 more" in result("worker-gpu").text


def test_sqlite_on_several_machines_is_a_problem(healthy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboard.models.operations.health.connection", Mock(vendor="sqlite"))
    WorkerNode.objects.register("gpu0@far", queue="gpu", host="far", pid=1)
    assert check_database().level == Level.PROBLEM
    assert "box, far" in check_database().text
    change("gpu0@far", stopped_at=db_now())
    assert check_database().level == Level.OK
    change("gpu0@far", stopped_at=None)
    monkeypatch.setattr("dashboard.models.operations.health.connection", Mock(vendor="postgresql"))
    assert check_database().level == Level.OK, "a database server may serve many machines"


def test_worst_check_comes_first(healthy: None) -> None:
    change("gpu0@box", stopped_at=db_now())
    change("cpu@box", clock_ahead=60)
    levels = [check.level for check in run_health_checks()]
    assert levels[:2] == [Level.PROBLEM, Level.WARNING]
    assert set(levels[2:]) == {Level.OK}
    assert summarize(run_health_checks()) == "1 problem and 1 warning."


def test_page_shows_problem_and_command(healthy: None, check_page: Callable[[], str]) -> None:
    change("gpu0@box", stopped_at=db_now())
    page = check_page()
    for text in ("1 problem.", 'data-level="problem"', 'data-copy="command-worker-gpu"'):
        assert text in page
    change("gpu0@box", stopped_at=None)
    assert 'data-level="problem"' not in check_page()


def test_page_shows_no_server_path(
    healthy: None, check_page: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=GIB // 2))
    (settings.BUNDLED_MODEL_DIR / "config.json").unlink()
    for path in (settings.DATA_DIR, settings.BUNDLED_MODEL_DIR, settings.BASE_DIR):
        assert str(path) not in check_page()


def test_page_needs_no_broker_and_few_queries(
    healthy: None, client: Client, mara: User, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    assert not settings.BROKER_SOCKET.exists()
    client.force_login(mara)
    with django_assert_max_num_queries(32):
        assert client.get(reverse("health-index")).status_code == 200


def test_settings_link_to_health_for_administrators(client: Client, ed: User, mara: User) -> None:
    root = User.objects.create_superuser("root@example.org")
    for user, has_link in ((ed, False), (mara, True), (root, True)):
        client.force_login(user)
        page = client.get(reverse("settings")).content.decode()
        assert (f'href="{reverse("health-index")}"' in page) == has_link


def test_user_without_project_may_not_read(client: Client, db: None) -> None:
    client.force_login(make_user("new@example.org"))
    assert client.get(reverse("health-index")).status_code == 403
