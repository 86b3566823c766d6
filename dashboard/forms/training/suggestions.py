"""Suggested changes of settings that make a run fit into memory. The form offers them as buttons."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from dashboard.models import BaseModel, TargetModuleConfig
from dashboard.models.training.forecast import DeviceForecast, RunForecaster
from workers.contract.hyperparameters import LIMITS, Hyperparameters
from workers.target_modules.presets import RECOMMENDED
from workers.target_modules.resolution import Resolution

# Shares of the present maximum length to try, the longest first.
LENGTH_SHARES = (0.75, 0.5, 0.375, 0.25, 0.125)
LENGTH_STEP = 16


@dataclass(frozen=True)
class Edit:
    """Changed fields of the form, and the run's forecast with them."""

    label: str
    effect: str
    values: dict[str, Any]
    forecast: DeviceForecast

    @property
    def values_text(self) -> str:
        """Return the changed fields as JSON for the page's script."""
        return json.dumps(self.values)

    @property
    def is_enough(self) -> bool:
        """Return whether the forecast's upper end fits."""
        return self.forecast.fit == "fits"


def suggest_edits(
    forecaster: RunForecaster,
    resolution: Resolution,
    hyperparameters: Hyperparameters,
    smallest: tuple[TargetModuleConfig, Resolution] | None,
) -> list[Edit]:
    """Return changes, the least costly first, if memory is short on every device."""
    if forecaster.forecast_best_device(resolution, hyperparameters).fit not in ("tight", "too_large"):
        return []
    suggestions = [
        edit
        for edit in (
            _first(forecaster, resolution, _smaller_batches(hyperparameters)),
            _first(forecaster, resolution, _gradient_checkpointing(hyperparameters)),
            _first(forecaster, resolution, _base_in_4bit(forecaster, resolution, hyperparameters)),
            _first(forecaster, resolution, _shorter_rows(forecaster, hyperparameters)),
            _other_layers(forecaster, hyperparameters, smallest) if smallest else None,
        )
        if edit
    ]
    if not any(edit.is_enough for edit in suggestions):
        both = _first(
            forecaster,
            resolution,
            _shorter_rows(forecaster, _with_batch_of_one(hyperparameters), with_batch_of_one=True),
        )
        suggestions += [both] if both else []
    return suggestions


def _with_batch_of_one(hyperparameters: Hyperparameters) -> Hyperparameters:
    """Return the same rows per step with a batch size of 1."""
    rows = min(hyperparameters.rows_per_step, int(LIMITS["gradient_accumulation_steps"][1]))
    return dataclasses.replace(
        hyperparameters, per_device_train_batch_size=1, gradient_accumulation_steps=rows
    )


Option = tuple[str, str, dict[str, Any], Hyperparameters]


def _first(forecaster: RunForecaster, resolution: Resolution, options: Iterator[Option]) -> Edit | None:
    """Return the first option that is enough, else the last one."""
    edit = None
    for label, effect, values, hyperparameters in options:
        edit = Edit(label, effect, values, forecaster.forecast_best_device(resolution, hyperparameters))
        if edit.is_enough:
            break
    return edit


def _smaller_batches(hyperparameters: Hyperparameters) -> Iterator[Option]:
    smaller = hyperparameters.with_smaller_batch()
    while smaller is not None:
        batch, times = smaller.per_device_train_batch_size, smaller.gradient_accumulation_steps
        label = _("Batch size %(batch)d, gradient accumulation %(times)d") % {"batch": batch, "times": times}
        values = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": times}
        yield label, _("Same result, slightly slower."), values, smaller
        smaller = smaller.with_smaller_batch()


def _gradient_checkpointing(hyperparameters: Hyperparameters) -> Iterator[Option]:
    if not hyperparameters.gradient_checkpointing:
        label = _("Turn on gradient checkpointing")
        effect = _("Same result; each step takes about a quarter longer.")
        values = {"gradient_checkpointing": True}
        yield label, effect, values, dataclasses.replace(hyperparameters, gradient_checkpointing=True)


def _base_in_4bit(
    forecaster: RunForecaster, resolution: Resolution, hyperparameters: Hyperparameters
) -> Iterator[Option]:
    able = (
        forecaster.quantizing_devices
        and not resolution.has_experts
        and hyperparameters.autocast_adapter_dtype
    )
    if able and not hyperparameters.load_in_4bit:
        label = _("Load the base model in 4 bits")
        effect = _("The quantised base model answers slightly differently, and the adapter is trained on it.")
        yield label, effect, {"load_in_4bit": True}, dataclasses.replace(hyperparameters, load_in_4bit=True)


def _shorter_rows(
    forecaster: RunForecaster, hyperparameters: Hyperparameters, *, with_batch_of_one: bool = False
) -> Iterator[Option]:
    for share in LENGTH_SHARES:
        length = int(hyperparameters.max_length * share) // LENGTH_STEP * LENGTH_STEP
        if length < LIMITS["max_length"][0]:
            return
        template = (
            _("Batch size 1, maximum length %(length)s")
            if with_batch_of_one
            else _("Maximum length %(length)s")
        )
        label = template % {"length": f"{length:,}"}
        values: dict[str, Any] = {"max_length": length}
        if with_batch_of_one:
            times = hyperparameters.gradient_accumulation_steps
            values |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": times}
        cut = forecaster.count_cut_rows(length)
        if cut is None:
            effect = _("Longer rows are truncated.")
        elif cut:
            effect = _("About %(rows)s answers are truncated.") % {"rows": f"{cut:,}"}
        else:
            effect = _("No answer is truncated.")
        yield label, effect, values, dataclasses.replace(hyperparameters, max_length=length)


def _other_layers(
    forecaster: RunForecaster,
    hyperparameters: Hyperparameters,
    smallest: tuple[TargetModuleConfig, Resolution],
) -> Edit | None:
    config, resolution = smallest
    if resolution.refusal:
        return None
    effect = _("A smaller adapter on other layers, which may learn less.")
    label = _("Train %(preset)s instead") % {"preset": config.name}
    return Edit(
        label,
        effect,
        {"target_module_config": config.pk},
        forecaster.forecast_best_device(resolution, hyperparameters),
    )


def find_smaller_preset(
    configs: list[TargetModuleConfig], chosen: TargetModuleConfig, base_model: BaseModel
) -> tuple[TargetModuleConfig, Resolution] | None:
    """Return the recommended preset, the smallest one, unless it is chosen already."""
    config = next((item for item in configs if item.slug == RECOMMENDED and item.pk != chosen.pk), None)
    return (config, config.resolve(base_model)) if config else None
