"""`manage.py doctor`: the findings as text, and one real question to a real broker."""

from __future__ import annotations

import io
import socket
import time
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command
from redis import Redis

from dashboard.management.commands.doctor import broker as asked
from dashboard.models import WorkerNode
from dashboard.models.finding import Finding, Level
from workers.celery import app

DOCTOR = "dashboard.management.commands.doctor"


def run() -> tuple[int, str]:
    """The command's exit status and what it prints."""
    output = io.StringIO()
    try:
        call_command("doctor", stdout=output)
    except SystemExit as end:
        return int(end.code or 0), output.getvalue()
    return 0, output.getvalue()


def test_it_ends_with_1_and_says_what_to_do_when_nothing_runs(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "REDIS_URL", "")
    status, text = run()
    assert status == 1
    for words in ("Problem   Broker: The broker does not answer", "No dispatcher answers", "$ make start"):
        assert words in text


def test_it_hears_the_broker(db: None, broker: Redis) -> None:
    assert asked().level == Level.OK
    _status, text = run()
    assert "In order  Broker: The broker answers." in text


def test_a_broker_that_stays_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app.conf.broker_transport_options, "socket_timeout", 0.5)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(settings.BROKER_SOCKET))
        silent.listen()
        began = time.monotonic()
        finding = asked()
    settings.BROKER_SOCKET.unlink()
    assert finding.level == Level.PROBLEM
    assert time.monotonic() - began < 10


def test_it_says_where_it_cannot_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "REDIS_URL", "")
    monkeypatch.setattr(settings, "BROKER_SOCKET", Path("/" + "long" * 30))
    assert asked().level == Level.WARNING


@pytest.mark.parametrize(("level", "status"), [(Level.OK, 0), (Level.WARNING, 0), (Level.PROBLEM, 1)])
def test_only_a_problem_is_an_error(monkeypatch: pytest.MonkeyPatch, level: Level, status: int) -> None:
    monkeypatch.setattr(f"{DOCTOR}.broker", lambda: Finding("broker", "Broker", Level.OK, "It answers."))
    monkeypatch.setattr(f"{DOCTOR}.findings", lambda: [Finding("disk", "Disk", level, "9 GB are free.")])
    assert run()[0] == status


@pytest.mark.parametrize("ahead", [0.0, 600.0, -600.0])
def test_a_heartbeat_compares_the_clocks(db: None, monkeypatch: pytest.MonkeyPatch, ahead: float) -> None:
    WorkerNode.objects.register("cpu@box", queue="cpu", host="box", pid=1)
    real = time.time
    monkeypatch.setattr("dashboard.models.worker_node.time.time", lambda: real() + ahead)
    WorkerNode.objects.record_heartbeat("cpu@box")
    assert WorkerNode.objects.get().clock_ahead == pytest.approx(ahead, abs=1)


def test_a_slow_answer_says_nothing_about_the_clocks(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    WorkerNode.objects.register("cpu@box", queue="cpu", host="box", pid=1, clock_ahead=0.25)
    moments = iter([1000.0, 1030.0])
    monkeypatch.setattr("dashboard.models.worker_node.time.time", lambda: next(moments))
    WorkerNode.objects.record_heartbeat("cpu@box")
    assert WorkerNode.objects.get().clock_ahead == 0.25
