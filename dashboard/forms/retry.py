"""What to change before a training that failed or was stopped is tried again, and what a link has changed.

A proposal is a link to the fine-tune form that names the earlier run and each changed setting.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.translation import gettext as _

from dashboard.forms.hyperparameters import EXPERT, format_value, setting_field
from dashboard.forms.training_runs import initial_from
from dashboard.models import TrainingRun
from dashboard.models.forecast import RunForecaster
from workers.hyperparameters import LIMITS, SETTINGS, Hyperparameters

# Failures that a smaller need of memory may mend. One that a person has stopped has no code.
MENDED_BY_LESS = ("", "out_of_memory", "worker_lost")
# Failures after which the same settings, or the same checkpoint, would fail the same way.
SETTINGS_FIRST = ("out_of_memory", "diverged", "max_length_too_long")
ANEW_FIRST = ("checkpoint_mismatch",)


@dataclass(frozen=True)
class Retry:
    """One proposal: what it is called, what it costs, and the settings that change."""

    run: TrainingRun
    label: str
    effect: str
    learn: Hyperparameters

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        """(name in words, before, after) of every setting that changes."""
        return changes(self.run, self._values())

    @property
    def url(self) -> str:
        """The form with the run's settings and these changes."""
        query = urlencode({"clone": self.run.pk, **self._values()})
        return f"{reverse('training-run-create')}?{query}"

    def _values(self) -> dict[str, Any]:
        # Settings that came later are not in the run's own list.
        old = dataclasses.asdict(Hyperparameters(**self.run.hyperparameters))
        new = dataclasses.asdict(self.learn)
        return {name: new[name] for name in EXPERT if new[name] != old[name]}


def retries(run: TrainingRun) -> list[Retry]:
    """Proposals for a run that has failed or was stopped, the most fitting first."""
    if run.state not in (TrainingRun.Outcome.FAILED, TrainingRun.Outcome.CANCELLED):
        return []
    code, learn = (run.error or {}).get("code", ""), Hyperparameters(**run.trained_with)
    proposals: tuple[Retry | None, ...] = ()
    if code == "diverged":
        proposals = (_lower_rate(run, learn),)
    elif code == "max_length_too_long":
        proposals = (_shorter_rows(run, learn),)
    elif code in MENDED_BY_LESS:
        proposals = (_smaller_batch(run, learn), _layers_twice(run, learn), _shorter_rows(run, learn))
    return [retry for retry in proposals if retry]


def first_way(run: TrainingRun, *, can_resume: bool, proposals: Sequence[Retry]) -> str:
    """What an ended run offers first: to `resume` it, to start `anew`, or anew with a `retry`'s settings."""
    code = (run.error or {}).get("code", "")
    if proposals and code in SETTINGS_FIRST:
        return "retry"
    return "resume" if can_resume and code not in ANEW_FIRST else "anew"


def _lower_rate(run: TrainingRun, learn: Hyperparameters) -> Retry:
    rate = max(float(f"{learn.learning_rate / 3:.1g}"), LIMITS["learning_rate"][0])
    effect = _("It learns more slowly and more steadily; more steps may be needed.")
    return Retry(run, _("A lower learning rate"), effect, dataclasses.replace(learn, learning_rate=rate))


def _smaller_batch(run: TrainingRun, learn: Hyperparameters) -> Retry | None:
    smaller = learn.with_smaller_batch()
    effect = _("Needs less memory and learns the same, perhaps more slowly.")
    return Retry(run, _("Fewer rows at once"), effect, smaller) if smaller else None


def _layers_twice(run: TrainingRun, learn: Hyperparameters) -> Retry | None:
    if learn.gradient_checkpointing:
        return None
    effect = _("Needs far less memory and learns the same; each step takes about a quarter longer.")
    return Retry(
        run, _("Layers computed twice"), effect, dataclasses.replace(learn, gradient_checkpointing=True)
    )


def _shorter_rows(run: TrainingRun, learn: Hyperparameters) -> Retry | None:
    length = learn.max_length // 2
    if length < LIMITS["max_length"][0]:
        return None
    cut = RunForecaster(run.base_model, run.dataset_version).count_cut_rows(length)
    rows = run.dataset_version.splits.get("train", 0)
    if cut is None or not rows:
        effect = _("Needs less memory and time. Longer rows lose their end.")
    elif cut:
        share = max(1, round(100 * cut / rows))
        effect = _("Needs less memory and time. About %(share)d %% of the answers lose their end.")
        effect %= {"share": share}
    else:
        effect = _("Needs less memory and time, and no answer is cut.")
    return Retry(run, _("Shorter rows"), effect, dataclasses.replace(learn, max_length=length))


def overrides(query: Mapping[str, str]) -> dict[str, Any]:
    """The settings that a link changes, as far as the form would take them."""
    found: dict[str, Any] = {}
    for name in EXPERT:
        if name in query:
            try:
                found[name] = setting_field(SETTINGS[name]).clean(query[name])
            except ValidationError:
                continue
    return found


def changes(run: TrainingRun, values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name in words, before, after) of each of these values that differs from the run's."""
    old = initial_from(run)
    return [
        (SETTINGS[name].label, format_value(old[name]), format_value(value))
        for name, value in values.items()
        if value != old[name]
    ]
