"""The Celery app and its settings. Messages only wake workers; the database holds the queue.

Run a node: `celery -A workers.celery worker -P prefork -c 1 -Q gpu -n gpu0@host`.
"""

from __future__ import annotations

import os

import django
from celery import Celery
from celery.signals import setup_logging

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dashboard.settings")
django.setup()

from django.conf import settings  # noqa: E402

app = Celery("graftworks", broker=settings.BROKER_URL, include=["workers.tasks"])
app.conf.update(
    broker_transport_options={
        # Short: messages are acknowledged early, so redelivery starts nothing twice.
        "visibility_timeout": 300,
        "socket_timeout": 5,
        "socket_connect_timeout": 3,
        "health_check_interval": 25,
        # Seconds after which an idle node asks again; a message ends the wait at once. Below socket_timeout.
        "polling_interval": 4,
        "global_keyprefix": "graftworks:",
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
    },
    visibility_timeout=300,
    result_backend=None,
    task_ignore_result=True,
    task_acks_late=False,
    task_reject_on_worker_lost=False,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    task_serializer="json",
    event_serializer="json",
    accept_content=["json"],
    broker_connection_retry_on_startup=True,
    task_publish_retry_policy={
        "max_retries": 1,
        "interval_start": 0,
        "interval_step": 0.2,
        "interval_max": 0.2,
    },
    worker_soft_shutdown_timeout=90,
    worker_send_task_events=False,
    task_default_queue="cpu",
)


@setup_logging.connect  # type: ignore[untyped-decorator]
def _keep_django_logging(**_kwargs: object) -> None:
    """Receive the signal: Celery replaces the log handlers only if nothing does."""
