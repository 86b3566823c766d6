"""Settings of Celery and the broker whose defaults would lose, repeat or delay work."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from dashboard.management.commands import start
from workers.celery import app

SETTINGS = {
    # The database holds the queue: a lost or repeated message changes nothing.
    "task_acks_late": False,
    "task_reject_on_worker_lost": False,
    "visibility_timeout": 300,
    # Nothing is kept in the broker.
    "result_backend": None,
    "task_ignore_result": True,
    "worker_send_task_events": False,
    # A busy process reserves no wake-up.
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,
    # No pickle.
    "task_serializer": "json",
    "event_serializer": "json",
    "accept_content": ["json"],
    # Only workers wait for an absent broker.
    "broker_connection_retry_on_startup": True,
    "task_publish_retry_policy": {
        "max_retries": 1,
        "interval_start": 0,
        "interval_step": 0.2,
        "interval_max": 0.2,
    },
    "worker_soft_shutdown_timeout": 90,
    "worker_enable_soft_shutdown_on_idle": False,
    "task_default_queue": "cpu",
}
TRANSPORT = {
    "visibility_timeout": 300,
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "health_check_interval": 25,
    "polling_interval": 4,
    "global_keyprefix": "graftworks:",
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
}
BROKER = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "port": "0",
    "unixsocketperm": "700",
}


def test_celery_settings() -> None:
    assert {name: getattr(app.conf, name) for name in SETTINGS} == SETTINGS


def test_transport_times_out_within_seconds() -> None:
    assert app.conf.broker_transport_options == TRANSPORT


def test_nodes_use_the_prefork_pool() -> None:
    assert "--pool=prefork" in start.NODE_OPTIONS, "others cannot be ended, or look dead while they work"


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    """The broker as `manage.py start` runs it, without the rest."""
    monkeypatch.setattr(start.settings, "DATA_DIR", tmp_path)
    program = start.broker_program(tmp_path / "valkey.sock")
    assert not callable(program.run)
    process = subprocess.Popen(program.run, env=program.environment, stdout=subprocess.DEVNULL)
    client = Redis(unix_socket_path=str(tmp_path / "valkey.sock"), decode_responses=True)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(RedisError):
            client.ping()
            break
        time.sleep(0.05)
    yield client
    process.terminate()
    process.wait(timeout=10)


def test_embedded_broker_persists_messages(embedded: Redis) -> None:
    assert {name: embedded.config_get(name)[name] for name in BROKER} == BROKER
