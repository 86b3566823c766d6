"""Hyper-parameters as form fields, built from `workers.contract.hyperparameters.SETTINGS`."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from typing import Any

from django import forms
from django.utils.text import format_lazy
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models import WorkerNode
from dashboard.models.jobs.worker_node import NO_4BIT_WORKER
from workers.contract.hyperparameters import (
    ADAPTER,
    BATCHES,
    LENGTH,
    OPTIMIZER,
    SETTINGS,
    Hyperparameters,
    Setting,
)

DEFAULTS = Hyperparameters()
STEPS, EPOCHS = "steps", "epochs"
EXPERT = tuple(name for name, setting in SETTINGS.items() if setting.group != LENGTH)
# Headings of the expert settings.
GROUPS = {
    ADAPTER: gettext_lazy("Adapter"),
    OPTIMIZER: gettext_lazy("Optimizer"),
    BATCHES: gettext_lazy("Batches and memory"),
}


class HyperparametersForm(forms.Form):
    """Length of the training and the expert settings. Every field has a default."""

    length = forms.ChoiceField(
        label=gettext_lazy("Training length"),
        choices=[(STEPS, gettext_lazy("Steps")), (EPOCHS, gettext_lazy("Epochs"))],
        widget=forms.RadioSelect,
    )
    # A study has seeds of its own.
    without: tuple[str, ...] = ()

    def __init__(self, data: Any = None, *, initial: dict[str, Any]) -> None:
        super().__init__(data, initial=initial)
        for name, setting in SETTINGS.items():
            if name not in self.without:
                self.fields[name] = setting_field(setting)
        offer_4bit(self.fields["load_in_4bit"], is_on=bool((data or initial).get("load_in_4bit")))

    def groups(self) -> list[tuple[str, list[forms.BoundField]]]:
        """Return the expert settings under their headings."""
        offered = [name for name in EXPERT if name in self.fields]
        return [
            (str(title), [self[name] for name in offered if SETTINGS[name].group == group])
            for group, title in GROUPS.items()
        ]

    def has_expert_errors(self) -> bool:
        """Tell whether an expert setting was refused, so that its section has to be open."""
        return any(name in self.errors for name in EXPERT)

    def hyperparameters(self) -> Hyperparameters:
        """Return what was entered where it is valid, defaults for the rest. May raise SpecError."""
        entered = self.cleaned_data
        values = {name: entered[name] for name in EXPERT if entered.get(name) is not None}
        by_epochs = entered.get("length") == EPOCHS
        length = "num_train_epochs" if by_epochs else "max_steps"
        values[length] = entered.get(length) or (1.0 if by_epochs else DEFAULTS.max_steps)
        return Hyperparameters(**values)


def setting_field(setting: Setting, **options: Any) -> forms.Field:
    """Return the form field of one hyper-parameter; `options` replace what the definition says."""
    values: dict[str, Any] = {
        "label": setting.label,
        "help_text": _help(setting),
        "required": setting.kind is not bool and not setting.is_optional,
        **options,
    }
    if setting.choices and setting.kind is bool:
        return forms.TypedChoiceField(choices=setting.choices, coerce=lambda text: text == "True", **values)
    if setting.choices:
        return forms.ChoiceField(choices=setting.choices, **values)
    if setting.kind is bool:
        return forms.BooleanField(**values)
    return _number_field(setting, values)


def _number_field(setting: Setting, values: dict[str, Any]) -> forms.Field:
    span = _span(setting)
    if setting.kind is int:
        field: type[forms.IntegerField] = forms.IntegerField
        attributes, sentence = {"inputmode": "numeric"}, _WHOLE
    else:
        field = forms.FloatField
        attributes, sentence = {"step": "any", "inputmode": "decimal"}, _NUMBER
    limits: Any = setting.limits or (None, None)
    return field(
        min_value=limits[0],
        max_value=limits[1],
        error_messages=dict.fromkeys(("invalid", "min_value", "max_value"), sentence % span),
        widget=forms.NumberInput(attrs=attributes),
        **values,
    )


_WHOLE = gettext_lazy("Enter a whole number from %(low)s to %(high)s.")
_NUMBER = gettext_lazy("Enter a number from %(low)s to %(high)s.")


def _span(setting: Setting) -> dict[str, str]:
    low, high = setting.limits or (0, 0)
    return {"low": format_number(low), "high": format_number(high)}


def _help(setting: Setting) -> Any:
    if not setting.limits:
        return format_lazy("{} <code>{}</code>", setting.explanation, setting.name)
    span = gettext_lazy("From %(low)s to %(high)s.") % _span(setting)
    return format_lazy("{} {} <code>{}</code>", setting.explanation, span, setting.name)


def offer_4bit(field: forms.Field, *, is_on: bool) -> None:
    """Disable a 4-bit base model where no worker supports it, and say why; it can still be turned off."""
    if not WorkerNode.objects.supporting_4bit().exists():
        field.widget.attrs["disabled"] = not is_on
        field.help_text = format_lazy(
            "{} {} {}", field.help_text, gettext_lazy("Not possible now:"), NO_4BIT_WORKER
        )


def length_missing(cleaned: dict[str, Any], errors: Container[str]) -> str:
    """Return the length field that was left empty although it is chosen; "" otherwise."""
    chosen = "max_steps" if cleaned.get("length") == STEPS else "num_train_epochs"
    return chosen if cleaned.get("length") and cleaned.get(chosen) is None and chosen not in errors else ""


def defaults() -> dict[str, Any]:
    """Return the form's initial values; alpha follows the rank."""
    values = {**to_form(DEFAULTS), "num_train_epochs": 3.0}
    # As the choice spells it, for the page's script.
    return values | {name: str(values[name]) for name in EXPERT if SETTINGS[name].choices}


def to_form(hyperparameters: Hyperparameters) -> dict[str, Any]:
    """Return the form's values for these hyper-parameters; an alpha of twice the rank is left empty."""
    values = {name: getattr(hyperparameters, name) for name in EXPERT}
    if hyperparameters.lora_alpha == 2 * hyperparameters.r:
        values["lora_alpha"] = None
    by_epochs = hyperparameters.num_train_epochs is not None
    length = "num_train_epochs" if by_epochs else "max_steps"
    return {**values, "length": EPOCHS if by_epochs else STEPS, length: getattr(hyperparameters, length)}


def differences(hyperparameters: Hyperparameters) -> list[tuple[str, str, str]]:
    """Return (name, value, default) of every setting that is not its default; alpha's follows the rank."""
    usual = dataclasses.replace(DEFAULTS, lora_alpha=2 * hyperparameters.r)
    pairs = ((name, getattr(hyperparameters, name), getattr(usual, name)) for name in SETTINGS)
    return [
        (name, format_value(value), format_value(default))
        for name, value, default in pairs
        if value != default and value is not None
    ]


def format_value(value: Any) -> str:
    """Return a setting as text: 0.00002 rather than 2e-05, yes rather than True."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    return format_number(value) if isinstance(value, int | float) else str(value)


def format_number(value: float) -> str:
    """Return a number as text: 512, 131,072, 0.1, 0.0000001."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.10f}".rstrip("0")
