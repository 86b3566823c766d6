"""`manage.py doctor`: what is wrong with this installation and how to mend it, in words.

The same findings as the page Settings, Health, and one real question to the broker. Ends with status 1 when
there is a problem; warnings alone end with 0.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.utils.translation import gettext as _
from redis.exceptions import RedisError

from dashboard.management.commands.dispatch import ask_broker
from dashboard.management.commands.start import SOCKET_LENGTH
from dashboard.models.finding import Finding, Level, start, summary
from dashboard.models.health import findings


class Command(BaseCommand):
    """See the module."""

    help = "Say what is wrong with this installation and how to mend it; status 1 when there is a problem."
    requires_system_checks = []

    def handle(self, *_arguments: Any, **_options: Any) -> None:
        found = sorted([broker(), *findings()], key=lambda finding: list(Level).index(finding.level))
        for finding in found:
            self.stdout.write(told(finding))
        self.stdout.write(f"\n{summary(found)}")
        if any(finding.level == Level.PROBLEM for finding in found):
            sys.exit(1)


def told(finding: Finding) -> str:
    """The finding as lines of text; what to do is indented below it."""
    below = [finding.mend, f"$ {finding.command}" if finding.command else ""]
    head = f"{finding.level.label:<10}{finding.title}: {finding.text}"
    return "\n".join([head, *(f"{'':10}{line}" for line in below if line)])


def broker() -> Finding:
    """One real ping. A broker that takes the call and stays silent is given up after some seconds."""
    check, title = "broker-ping", _("Broker")
    unknown = len(os.fsencode(settings.BROKER_SOCKET)) > SOCKET_LENGTH and not settings.REDIS_URL
    if unknown:
        text = _("Its socket lies in a folder that only `make start` knows, because DATA_DIR is so long.")
        mend = _("Nothing needs to be done. To have the broker asked, choose a shorter DATA_DIR.")
        return Finding(check, title, Level.WARNING, text, mend)
    try:
        ask_broker()
    except (RedisError, OSError) as error:
        return Finding(
            check,
            title,
            Level.PROBLEM,
            _("The broker does not answer: %(error)s") % {"error": f"{error}".rstrip(".") + "."},
            _("Start it, or correct REDIS_URL. Jobs are saved and start by themselves when it is back."),
            start('valkey-cli -u "$REDIS_URL" ping'),
        )
    return Finding(check, title, Level.OK, _("The broker answers."))
