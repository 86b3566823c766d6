"""Forecast and measured values of a run side by side, as texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from dashboard.models import TrainingRun
from dashboard.templatetags.graftworks import about, duration, filesize, number


@dataclass(frozen=True)
class ForecastError:
    """One quantity: predicted with its range, measured, and the relative error of the forecast."""

    label: str
    predicted: str
    range: str
    measured: str
    off: str


def compare_forecast(run: TrainingRun) -> list[ForecastError]:
    """Return a line for each quantity that was both predicted and measured."""
    predicted, measured = run.forecast, run.measured
    quantities: tuple[tuple[str, str, str, Callable[[Any], str], Callable[[Any], str]], ...] = (
        (_("Peak memory"), "peak_memory_bytes", "peak_memory_bytes", filesize, filesize),
        (_("Time"), "seconds", "wall_seconds", about, duration),
        (_("Trainable parameters"), "trainable_parameters", "trainable_parameters", number, number),
        (_("Adapter"), "adapter_bytes", "adapter_bytes", filesize, filesize),
    )
    lines = []
    for label, forecast_name, measured_name, format_forecast, format_measured in quantities:
        forecast, value = predicted.get(forecast_name), measured.get(measured_name)
        if not forecast or not value:
            continue
        has_range = isinstance(forecast, dict)
        expected = forecast["expected"] if has_range else forecast
        ends = {end: format_forecast(forecast[end]) for end in ("low", "high")} if has_range else {}
        error = value / expected - 1 if expected else 0.0
        lines.append(
            ForecastError(
                label=label,
                predicted=format_forecast(expected),
                range=_("%(low)s to %(high)s") % ends if ends else "",
                measured=format_measured(value),
                off=_("exact") if value == expected else f"{100 * error:+.1f} %",
            )
        )
    return lines
