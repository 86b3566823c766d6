"""Tables of runs side by side: settings, scores, losses and preferences. For the pages Compare and Study."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.charts import curves
from dashboard.forms.training.hyperparameters import format_value
from dashboard.models import BlindComparison, MetricSeries, State, TrainingRun
from dashboard.models.catalog.metrics import METRICS
from workers.contract.hyperparameters import SETTINGS

SOURCE_LABELS = {
    "dataset": gettext_lazy("Dataset"),
    "validation_dataset": gettext_lazy("Validation dataset"),
    "base_model": gettext_lazy("Base model"),
    "target_modules": gettext_lazy("Target modules"),
}


def settings_table(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Return one row per setting: the value of each run, and whether the values differ."""
    settings = [run.flat_settings() for run in runs]
    names = list(dict.fromkeys(name for values in settings for name in values))
    rows = []
    for name in names:
        values = [format_value(values.get(name), name) for values in settings]
        rows.append(
            {
                "name": name,
                "label": SOURCE_LABELS.get(name) or SETTINGS[name].label,
                "values": values,
                "differs": len(set(values)) > 1,
            }
        )
    return rows


def score_table(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Return one row per metric: base, adapter and difference of each run."""
    by_run = [{row.metric.name: row for row in curves.score_rows(run)} for run in runs]
    names = dict.fromkeys(name for rows in by_run for name in rows)
    return [{"label": METRICS[name].label, "cells": [rows.get(name) for rows in by_run]} for name in names]


def loss_table(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Return last training loss, last and lowest validation loss of each run."""
    stored = {
        (series.run_id, series.name): series
        for series in MetricSeries.objects.filter(run__in=runs, name__in=curves.CURVES)
    }
    return [
        {
            "train": stored.get((run.pk, "train/loss")),
            "validation": stored.get((run.pk, "validation/loss")),
        }
        for run in runs
    ]


def exact_matches(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Return each run's exact match before and after training, and the number of rows."""
    matches = []
    for run in runs:
        row = next((row for row in curves.score_rows(run) if row.metric.name == "exact_match"), None)
        if row and row.base is not None and row.adapter is not None:
            ended = [
                evaluation for evaluation in run.evaluations.all() if evaluation.state == State.SUCCEEDED
            ]
            matches.append({"run": run, "row": row, "rows": ended[-1].rows})
    return matches


def preference_table(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Return people's preference between the runs' adapters, and between each and its base model."""
    adapters = [run.adapter for run in runs if hasattr(run, "adapter")]
    rows = []
    for base in {run.base_model_id: run.base_model for run in runs if hasattr(run, "adapter")}.values():
        names: dict[int | None, str] = {one.pk: str(one) for one in adapters if one.base_model_id == base.pk}
        names[None] = _("Base model")
        votes = BlindComparison.objects.filter(project=runs[0].project_id)
        preferences = votes.preferences(base, combinations(names, 2))
        rows += [
            {
                "first": names[first],
                "second": names[second],
                "votes": found.preference,
                "visitor_votes": found.visitor_votes,
            }
            for (first, second), found in preferences.items()
        ]
    return rows
