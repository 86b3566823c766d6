"""`manage.py doctor`: the checks of Settings, Health as text, and a ping of the broker.

Exits with status 1 when a check reports a problem; warnings alone exit with 0.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.utils.translation import gettext as _
from redis.exceptions import RedisError

from dashboard.management.commands.dispatch import ping_broker
from dashboard.management.commands.start import SOCKET_LENGTH
from dashboard.models.operations.health import run_health_checks
from dashboard.models.operations.health_check import HealthCheck, Level, start_command, summarize, worst_first


class Command(BaseCommand):
    help = "Check this installation and print how to fix what is wrong; exits with 1 when there is a problem."
    requires_system_checks = []

    def handle(self, *_arguments: Any, **_options: Any) -> None:
        checks = worst_first([check_broker(), *run_health_checks()])
        for check in checks:
            self.stdout.write(as_text(check))
        self.stdout.write(f"\n{summarize(checks)}")
        if any(check.level == Level.PROBLEM for check in checks):
            sys.exit(1)


def as_text(check: HealthCheck) -> str:
    """Return the check in one line, with remedy and command indented below it."""
    details = [check.remedy, f"$ {check.command}" if check.command else ""]
    head = f"{check.level.label:<10}{check.title}: {check.text}"
    return "\n".join([head, *(f"{'':10}{line}" for line in details if line)])


def check_broker() -> HealthCheck:
    """Ping the broker. The socket's time limit ends the wait for a silent one."""
    code, title = "broker-ping", _("Broker")
    if not settings.REDIS_URL and len(os.fsencode(settings.BROKER_SOCKET)) > SOCKET_LENGTH:
        text = _("The path of DATA_DIR is so long that only `make start` knows the broker's socket.")
        remedy = _("No action is needed. Choose a shorter DATA_DIR to let this command contact the broker.")
        return HealthCheck(code, title, Level.WARNING, text, remedy)
    try:
        ping_broker()
    except (RedisError, OSError) as error:
        text = _("The broker does not answer: %(error)s") % {"error": f"{error}".rstrip(".") + "."}
        remedy = _("Start it or correct REDIS_URL. Jobs are saved and start when it is back.")
        command = start_command('valkey-cli -u "$REDIS_URL" ping')
        return HealthCheck(code, title, Level.PROBLEM, text, remedy, command)
    return HealthCheck(code, title, Level.OK, _("The broker answers."))
