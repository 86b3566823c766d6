"""What to change so that a run fits into memory: concrete settings, each with what it costs.

The form offers them as buttons; nothing is changed unasked.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from dashboard.models import BaseModel, TargetModuleConfig
from dashboard.models.forecast import DeviceForecast, RunForecaster
from workers.hyperparameters import LIMITS, Hyperparameters
from workers.presets import RECOMMENDED
from workers.targets import Resolution

# Parts of the present maximum length that are tried, the longest first.
SHORTER = (0.75, 0.5, 0.375, 0.25, 0.125)
STEP = 16


@dataclass(frozen=True)
class Edit:
    """One way to make it fit: the fields of the form that change, and what it would need then."""

    label: str
    effect: str
    values: dict[str, Any]
    forecast: DeviceForecast

    @property
    def values_text(self) -> str:
        """The changes as the page's script reads them."""
        return json.dumps(self.values)

    @property
    def is_enough(self) -> bool:
        """Whether it would fit for certain, as far as forecasts go."""
        return self.forecast.fit == "fits"


def edits(
    forecaster: RunForecaster,
    resolution: Resolution,
    learn: Hyperparameters,
    smallest: tuple[TargetModuleConfig, Resolution] | None,
) -> list[Edit]:
    """Ways out where memory is short on every device, the gentlest first; nothing where it fits."""
    if forecaster.forecast_best_device(resolution, learn).fit not in ("tight", "too_large"):
        return []
    found = [
        edit
        for edit in (
            _first(forecaster, resolution, _smaller_batches(learn)),
            _first(forecaster, resolution, _layers_twice(learn)),
            _first(forecaster, resolution, _base_in_4bit(forecaster, resolution, learn)),
            _first(forecaster, resolution, _shorter_rows(forecaster, learn)),
            _other_layers(forecaster, learn, smallest) if smallest else None,
        )
        if edit
    ]
    if not any(edit.is_enough for edit in found):
        both = _first(forecaster, resolution, _shorter_rows(forecaster, one_row(learn), alone=True))
        found += [both] if both else []
    return found


def one_row(learn: Hyperparameters) -> Hyperparameters:
    """The same step, one row at a time."""
    rows = min(learn.rows_per_step, int(LIMITS["gradient_accumulation_steps"][1]))
    return dataclasses.replace(learn, per_device_train_batch_size=1, gradient_accumulation_steps=rows)


Option = tuple[str, str, dict[str, Any], Hyperparameters]


def _first(forecaster: RunForecaster, resolution: Resolution, options: Iterator[Option]) -> Edit | None:
    """The first option that is enough, else the last one."""
    edit = None
    for label, effect, values, learn in options:
        edit = Edit(label, effect, values, forecaster.forecast_best_device(resolution, learn))
        if edit.is_enough:
            break
    return edit


def _smaller_batches(learn: Hyperparameters) -> Iterator[Option]:
    smaller = learn.with_smaller_batch()
    while smaller is not None:
        batch, times = smaller.per_device_train_batch_size, smaller.gradient_accumulation_steps
        label = _("%(batch)d rows at once, %(times)d times per step") % {"batch": batch, "times": times}
        values = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": times}
        yield label, _("Learns the same, perhaps a little more slowly."), values, smaller
        smaller = smaller.with_smaller_batch()


def _layers_twice(learn: Hyperparameters) -> Iterator[Option]:
    if not learn.gradient_checkpointing:
        label = _("Compute layers twice")
        effect = _("Learns the same; each step takes about a quarter longer.")
        values = {"gradient_checkpointing": True}
        yield label, effect, values, dataclasses.replace(learn, gradient_checkpointing=True)


def _base_in_4bit(
    forecaster: RunForecaster, resolution: Resolution, learn: Hyperparameters
) -> Iterator[Option]:
    able = forecaster.quantizing_devices and not resolution.has_experts and learn.autocast_adapter_dtype
    if able and not learn.load_in_4bit:
        label = _("Keep the base model in 4 bits")
        effect = _("It answers a little differently, and the adapter learns on that.")
        yield label, effect, {"load_in_4bit": True}, dataclasses.replace(learn, load_in_4bit=True)


def _shorter_rows(
    forecaster: RunForecaster, learn: Hyperparameters, *, alone: bool = False
) -> Iterator[Option]:
    for part in SHORTER:
        length = int(learn.max_length * part) // STEP * STEP
        if length < LIMITS["max_length"][0]:
            return
        words = (
            _("One row at once, of at most %(length)s tokens")
            if alone
            else _("Rows of at most %(length)s tokens")
        )
        label = words % {"length": f"{length:,}"}
        values: dict[str, Any] = {"max_length": length}
        if alone:
            times = learn.gradient_accumulation_steps
            values |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": times}
        cut = forecaster.count_cut_rows(length)
        if cut is None:
            effect = _("Longer rows lose their end.")
        elif cut:
            effect = _("The answers of about %(rows)s rows would be cut.") % {"rows": f"{cut:,}"}
        else:
            effect = _("No answer would be cut.")
        yield label, effect, values, dataclasses.replace(learn, max_length=length)


def _other_layers(
    forecaster: RunForecaster, learn: Hyperparameters, smallest: tuple[TargetModuleConfig, Resolution]
) -> Edit | None:
    config, resolution = smallest
    if resolution.refusal:
        return None
    effect = _("A smaller adapter on other layers: it may learn less.")
    label = _("Train %(preset)s instead") % {"preset": config.name}
    return Edit(
        label,
        effect,
        {"target_module_config": config.pk},
        forecaster.forecast_best_device(resolution, learn),
    )


def smallest_of(
    configs: list[TargetModuleConfig], chosen: TargetModuleConfig, base_model: BaseModel
) -> tuple[TargetModuleConfig, Resolution] | None:
    """The recommended preset, where another one is chosen."""
    config = next((one for one in configs if one.slug == RECOMMENDED and one.pk != chosen.pk), None)
    return (config, config.resolve(base_model)) if config else None
