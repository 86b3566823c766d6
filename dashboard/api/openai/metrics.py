"""Loss and token accuracy of a run's steps, under the names of OpenAI's API."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dashboard.models import TrainingRun

# Name in the API -> curve of the run; the columns of a table of metrics have the same order.
SERIES = {
    "train_loss": "train/loss",
    "train_mean_token_accuracy": "train/token_accuracy",
    "valid_loss": "validation/loss",
    "valid_mean_token_accuracy": "validation/token_accuracy",
}
Curves = Mapping[str, Mapping[int, float]]


def curves_of(run: TrainingRun) -> Curves:
    """Return name in the API -> value by step. Older runs have no token accuracy."""
    stored = {series.name: series for series in run.metric_series.all()}
    return {
        name: dict(stored[series].points()) if series in stored else {} for name, series in SERIES.items()
    }


def values_at(curves: Curves, step: int) -> dict[str, float | None]:
    """Return the values of a step; None if there is none, or if it is not finite (JSON)."""
    values = {name: points.get(step, math.nan) for name, points in curves.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
