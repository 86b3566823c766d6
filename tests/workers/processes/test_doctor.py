"""`manage.py doctor`: the health checks as text, and a ping of a real broker."""

from __future__ import annotations

import io
import socket
import time
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command
from redis import Redis

from dashboard.management.commands.doctor import check_broker
from dashboard.models import WorkerNode
from dashboard.models.operations.health_check import HealthCheck, Level
from workers.celery import app

DOCTOR = "dashboard.management.commands.doctor"


def run() -> tuple[int, str]:
    """Return the exit status and the output."""
    output = io.StringIO()
    try:
        call_command("doctor", stdout=output)
    except SystemExit as end:
        return int(end.code or 0), output.getvalue()
    return 0, output.getvalue()


def test_exits_with_1_and_prints_remedies_when_nothing_runs(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "REDIS_URL", "")
    status, text = run()
    assert status == 1
    assert "Problem   Broker: The broker does not answer" in text
    assert "$ make start" in text


def test_broker_answers(db: None, broker: Redis) -> None:
    assert check_broker().level == Level.OK
    _status, text = run()
    assert "OK        Broker: The broker answers." in text


def test_silent_broker_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app.conf.broker_transport_options, "socket_timeout", 0.5)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(settings.BROKER_SOCKET))
        silent.listen()
        began = time.monotonic()
        check = check_broker()
    settings.BROKER_SOCKET.unlink()
    assert check.level == Level.PROBLEM
    assert time.monotonic() - began < 10


def test_long_socket_path_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "REDIS_URL", "")
    monkeypatch.setattr(settings, "BROKER_SOCKET", Path("/" + "long" * 30))
    assert check_broker().level == Level.WARNING


@pytest.mark.parametrize(("level", "status"), [(Level.OK, 0), (Level.WARNING, 0), (Level.PROBLEM, 1)])
def test_only_problems_exit_with_1(monkeypatch: pytest.MonkeyPatch, level: Level, status: int) -> None:
    monkeypatch.setattr(
        f"{DOCTOR}.check_broker", lambda: HealthCheck("broker", "Broker", Level.OK, "It answers.")
    )
    monkeypatch.setattr(
        f"{DOCTOR}.run_health_checks", lambda: [HealthCheck("disk", "Disk", level, "9 GB are free.")]
    )
    assert run()[0] == status


@pytest.mark.parametrize("ahead", [0.0, 600.0, -600.0])
def test_heartbeat_measures_clock_difference(db: None, monkeypatch: pytest.MonkeyPatch, ahead: float) -> None:
    WorkerNode.objects.register("cpu@box", queue="cpu", host="box", pid=1)
    real = time.time
    monkeypatch.setattr("dashboard.models.jobs.worker_node.time.time", lambda: real() + ahead)
    WorkerNode.objects.record_heartbeat("cpu@box")
    assert WorkerNode.objects.get().clock_ahead == pytest.approx(ahead, abs=1)


def test_slow_heartbeat_keeps_clock_difference(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    WorkerNode.objects.register("cpu@box", queue="cpu", host="box", pid=1, clock_ahead=0.25)
    moments = iter([1000.0, 1030.0])
    monkeypatch.setattr("dashboard.models.jobs.worker_node.time.time", lambda: next(moments))
    WorkerNode.objects.record_heartbeat("cpu@box")
    assert WorkerNode.objects.get().clock_ahead == 0.25
