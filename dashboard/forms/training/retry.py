"""Retry proposals for a failed or stopped run: links to the fine-tune form with changed settings."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.translation import gettext as _

from dashboard.forms.training.hyperparameters import EXPERT, format_value, setting_field
from dashboard.forms.training.training_runs import initial_from
from dashboard.models import TrainingRun
from dashboard.models.training.forecast import RunForecaster
from workers.contract.hyperparameters import LIMITS, SETTINGS, Hyperparameters

# Failures that less memory may avoid. A stopped run has no code.
MEMORY_CODES = ("", "out_of_memory", "worker_lost")
# Failures that the same settings, or the same checkpoint, would repeat.
RETRY_FIRST = ("out_of_memory", "diverged", "max_length_too_long")
RESTART_FIRST = ("checkpoint_mismatch",)


@dataclass(frozen=True)
class Retry:
    """One proposal with its label, its effect and its settings."""

    run: TrainingRun
    label: str
    effect: str
    hyperparameters: Hyperparameters

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        """Return (label, before, after) of every changed setting."""
        return changes(self.run, self._values())

    @property
    def url(self) -> str:
        """Return the link to the fine-tune form with these changes."""
        query = urlencode({"clone": self.run.pk, **self._values()})
        return f"{reverse('training-run-create')}?{query}"

    def _values(self) -> dict[str, Any]:
        # A run may be older than a setting.
        old = dataclasses.asdict(Hyperparameters(**self.run.hyperparameters))
        new = dataclasses.asdict(self.hyperparameters)
        return {name: new[name] for name in EXPERT if new[name] != old[name]}


def retries(run: TrainingRun) -> list[Retry]:
    """Return proposals for a failed or stopped run, the best first."""
    if run.state not in (TrainingRun.Outcome.FAILED, TrainingRun.Outcome.CANCELLED):
        return []
    code, hyperparameters = (run.error or {}).get("code", ""), Hyperparameters(**run.effective_settings)
    proposals: tuple[Retry | None, ...] = ()
    if code == "diverged":
        proposals = (_lower_rate(run, hyperparameters),)
    elif code == "max_length_too_long":
        proposals = (_shorter_sequences(run, hyperparameters),)
    elif code in MEMORY_CODES:
        proposals = (
            _smaller_batch(run, hyperparameters),
            _gradient_checkpointing(run, hyperparameters),
            _shorter_sequences(run, hyperparameters),
        )
    return [retry for retry in proposals if retry]


def primary_action(run: TrainingRun, *, can_resume: bool, proposals: Sequence[Retry]) -> str:
    """Return the action to offer first: `resume`, `restart` (same settings) or `retry` (changed settings)."""
    code = (run.error or {}).get("code", "")
    if proposals and code in RETRY_FIRST:
        return "retry"
    return "resume" if can_resume and code not in RESTART_FIRST else "restart"


def _lower_rate(run: TrainingRun, hyperparameters: Hyperparameters) -> Retry:
    rate = max(float(f"{hyperparameters.learning_rate / 3:.1g}"), LIMITS["learning_rate"][0])
    effect = _("Training is slower and more stable; it may need more steps.")
    return Retry(
        run, _("Lower the learning rate"), effect, dataclasses.replace(hyperparameters, learning_rate=rate)
    )


def _smaller_batch(run: TrainingRun, hyperparameters: Hyperparameters) -> Retry | None:
    smaller = hyperparameters.with_smaller_batch()
    effect = _("Needs less memory; same result, possibly slower.")
    return Retry(run, _("Reduce the batch size"), effect, smaller) if smaller else None


def _gradient_checkpointing(run: TrainingRun, hyperparameters: Hyperparameters) -> Retry | None:
    if hyperparameters.gradient_checkpointing:
        return None
    effect = _("Needs far less memory; same result, each step takes about a quarter longer.")
    return Retry(
        run,
        _("Turn on gradient checkpointing"),
        effect,
        dataclasses.replace(hyperparameters, gradient_checkpointing=True),
    )


def _shorter_sequences(run: TrainingRun, hyperparameters: Hyperparameters) -> Retry | None:
    length = hyperparameters.max_length // 2
    if length < LIMITS["max_length"][0]:
        return None
    cut = RunForecaster(run.base_model, run.dataset_version).count_cut_rows(length)
    rows = run.dataset_version.splits.get("train", 0)
    if cut is None or not rows:
        effect = _("Needs less memory and time. Longer rows are cut at their end.")
    elif cut:
        share = max(1, round(100 * cut / rows))
        effect = _("Needs less memory and time. About %(share)d %% of the answers are cut.")
        effect %= {"share": share}
    else:
        effect = _("Needs less memory and time, and no answer is cut.")
    return Retry(
        run,
        _("Reduce the maximum sequence length"),
        effect,
        dataclasses.replace(hyperparameters, max_length=length),
    )


def overrides(query: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings in a link's query that the form accepts."""
    values: dict[str, Any] = {}
    for name in EXPERT:
        if name in query:
            with contextlib.suppress(ValidationError):
                values[name] = setting_field(SETTINGS[name]).clean(query[name])
    return values


def changes(run: TrainingRun, values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (label, before, after) of each value that differs from the run's."""
    old = initial_from(run)
    return [
        (SETTINGS[name].label, format_value(old[name], name), format_value(value, name))
        for name, value in values.items()
        if value != old[name]
    ]
