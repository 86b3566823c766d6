"""A run's forecast beside what it measured, in words, for the run's page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from dashboard.models import TrainingRun
from dashboard.templatetags.graftworks import about, duration, filesize, number


@dataclass(frozen=True)
class Compared:
    """One line: predicted with its range, measured, and how far off."""

    label: str
    predicted: str
    range: str
    measured: str
    off: str


def compared(run: TrainingRun) -> list[Compared]:
    """Predicted and measured side by side; nothing before anything is measured."""
    told, found = run.forecast, run.measured
    lines = (
        (_("Peak memory"), told.get("peak_memory_bytes"), found.get("peak_memory_bytes"), filesize, filesize),
        (_("Time"), told.get("seconds"), found.get("wall_seconds"), about, duration),
        (_("Trainable parameters"), told.get("trainable_parameters"), found.get("trainable_parameters"),
         number, number),
        (_("Adapter"), told.get("adapter_bytes"), found.get("adapter_bytes"), filesize, filesize),
    )  # fmt: skip
    return [_line(*line) for line in lines if line[1] and line[2]]


def _line(label: str, told: Any, found: float, say: Any, say_found: Any) -> Compared:
    spans = isinstance(told, dict)
    expected = told["expected"] if spans else told
    share = found / expected - 1 if expected else 0.0
    span = {"low": say(told["low"]), "high": say(told["high"])} if spans else {}
    return Compared(
        label=label,
        predicted=say(expected),
        range=_("%(low)s to %(high)s") % span if span else "",
        measured=say_found(found),
        off=_("exact") if found == expected else f"{100 * share:+.1f} %",
    )
