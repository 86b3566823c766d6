"""The result of one health check: its level, a sentence, and the command that fixes the problem."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.db import models
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

NAMES_SHOWN = 5


class Level(models.TextChoices):
    """Severity, the worst first."""

    PROBLEM = "problem", gettext_lazy("Problem")
    WARNING = "warning", gettext_lazy("Warning")
    OK = "ok", gettext_lazy("OK")


@dataclass(frozen=True)
class HealthCheck:
    """The result of a check. A problem or a warning has a remedy, and often a command to copy."""

    code: str
    title: str
    level: Level
    text: str
    remedy: str = ""
    command: str = ""


def worst_first(checks: Sequence[HealthCheck]) -> list[HealthCheck]:
    return sorted(checks, key=lambda check: list(Level).index(check.level))


def summarize(checks: Sequence[HealthCheck]) -> str:
    """Return the number of problems and warnings as a sentence."""
    problems = sum(check.level == Level.PROBLEM for check in checks)
    warnings = sum(check.level == Level.WARNING for check in checks)
    parts = []
    if problems:
        parts.append(ngettext("%(count)d problem", "%(count)d problems", problems) % {"count": problems})
    if warnings:
        parts.append(ngettext("%(count)d warning", "%(count)d warnings", warnings) % {"count": warnings})
    return _(" and ").join(parts) + "." if parts else _("All checks passed.")


def manage_command(arguments: str) -> str:
    """Return a management command as typed in the folder of this installation."""
    own = Path(sys.prefix) == Path(settings.BASE_DIR) / ".venv"
    return f"{'.venv/bin/python' if own else 'python'} manage.py {arguments}"


def start_command(program: str) -> str:
    """Return what starts a program: itself where the broker is a separate server, else the launcher."""
    return program if settings.REDIS_URL else "make start"


def join_names(names: Sequence[str]) -> str:
    """Return the first few names and how many more there are."""
    more = len(names) - NAMES_SHOWN
    first = ", ".join(names[:NAMES_SHOWN])
    return _("%(names)s and %(more)d more") % {"names": first, "more": more} if more > 0 else first
