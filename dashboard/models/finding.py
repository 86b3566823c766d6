"""A finding about this installation: what is wrong in words, how bad it is, and the command that mends it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.db import models
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

NAMED = 5


class Level(models.TextChoices):
    """How much a finding matters. The labels are the words people read."""

    PROBLEM = "problem", gettext_lazy("Problem")
    WARNING = "warning", gettext_lazy("Warning")
    OK = "ok", gettext_lazy("In order")


@dataclass(frozen=True)
class Finding:
    """What one check found: a sentence, and unless all is well what to do and a command to copy."""

    check: str
    title: str
    level: Level
    text: str
    mend: str = ""
    command: str = ""


def summary(found: list[Finding]) -> str:
    """All findings in one sentence."""
    problems = sum(finding.level == Level.PROBLEM for finding in found)
    warnings = sum(finding.level == Level.WARNING for finding in found)
    parts = [
        ngettext("%(count)d problem", "%(count)d problems", problems) % {"count": problems},
        ngettext("%(count)d warning", "%(count)d warnings", warnings) % {"count": warnings},
    ]
    said = [part for part, count in zip(parts, (problems, warnings), strict=True) if count]
    return _(" and ").join(said) + "." if said else _("Everything is in order.")


def manage(arguments: str) -> str:
    """A management command as it is typed in the folder of this installation."""
    own = Path(sys.prefix) == Path(settings.BASE_DIR) / ".venv"
    return f"{'.venv/bin/python' if own else 'python'} manage.py {arguments}"


def start(program: str) -> str:
    """How one program is started: alone where the broker is a server of its own, else with all others."""
    return program if settings.REDIS_URL else "make start"


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMED
    shown = ", ".join(names[:NAMED])
    return _("%(names)s and %(more)d more") % {"names": shown, "more": more} if more > 0 else shown
