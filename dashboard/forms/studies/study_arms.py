"""Further arms of the study form: a config with its own settings, beside the ticked configs.

Rows of a form set; an empty field has the value that all arms share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from django import forms
from django.forms import BaseFormSet, formset_factory
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.forms.training.hyperparameters import format_number, setting_field
from dashboard.models import ArmPlan, TargetModuleConfig
from dashboard.models.studies.plan import MOST_ARMS, with_changes
from workers.contract.hyperparameters import SETTINGS, Hyperparameters

PREFIX = "more"
TOTAL = f"{PREFIX}-TOTAL_FORMS"
# Settings that a row can change -> its part of the arm's name.
ROW_SETTINGS = {
    "r": gettext_lazy("r %(value)s"),
    "lora_alpha": gettext_lazy("alpha %(value)s"),
    "lora_dropout": gettext_lazy("dropout %(value)s"),
    "learning_rate": gettext_lazy("rate %(value)s"),
}
NAME_LENGTH = 120


def _setting_field(name: str, label: Any) -> forms.Field:
    return setting_field(SETTINGS[name], label=label, required=False, help_text="")


class FurtherArmForm(forms.Form):
    """One further arm; an empty row is ignored."""

    config = forms.TypedChoiceField(
        label=gettext_lazy("Target modules"),
        coerce=int,
        empty_value=None,
        required=False,
        error_messages={
            "invalid_choice": gettext_lazy("There is no such preset in this project. Choose another.")
        },
    )
    r = _setting_field("r", gettext_lazy("Rank (r)"))
    lora_alpha = _setting_field("lora_alpha", gettext_lazy("Alpha"))
    lora_dropout = _setting_field("lora_dropout", gettext_lazy("Dropout"))
    learning_rate = _setting_field("learning_rate", gettext_lazy("Learning rate"))
    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=NAME_LENGTH,
        required=False,
        help_text=gettext_lazy("If empty, the name lists the differing settings."),
    )

    def __init__(self, *arguments: Any, offered: Sequence[TargetModuleConfig], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.offered = {config.pk: config for config in offered}
        names = [(pk, str(config)) for pk, config in self.offered.items()]
        self.fields["config"].choices = [("", _("Choose one")), *names]  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        """Require target modules for a row with settings."""
        values = self.cleaned_data
        entered = any(values.get(name) not in (None, "") for name in (*ROW_SETTINGS, "name"))
        if entered and values.get("config") is None and "config" not in self.errors:
            self.add_error("config", _("Choose the target modules of this arm, or clear its other fields."))
        return values

    @property
    def is_filled(self) -> bool:
        return self.is_valid() and self.cleaned_data.get("config") is not None

    def forbid(self, names: Sequence[str], message: str) -> None:
        """Refuse values that other fields of the form determine."""
        for name in names:
            if self.cleaned_data.get(name) is not None:
                self.add_error(name, message)

    def plan(self, shared: Hyperparameters) -> ArmPlan:
        """Return the arm, with the shared settings for empty fields. Raises SpecError."""
        config = self.offered[self.cleaned_data["config"]]
        learn = with_changes(shared, {name: self.cleaned_data[name] for name in ROW_SETTINGS})
        return ArmPlan(self.cleaned_data["name"] or arm_name(str(config.name), shared, learn), config, learn)


class FurtherArms(BaseFormSet):  # type: ignore[type-arg]
    """The rows of further arms."""

    def row_errors(self) -> list[str]:
        """Return every error with its row and field."""
        return [
            _("Further arm %(number)d, %(field)s: %(error)s")
            % {"number": number, "field": form.fields[name].label, "error": error}
            for number, form in enumerate(self.forms, 1)
            for name, errors in form.errors.items()
            for error in errors
        ]


FurtherArmSet = formset_factory(
    FurtherArmForm, formset=FurtherArms, extra=0, max_num=MOST_ARMS, absolute_max=MOST_ARMS
)


def further_arms(data: Any, offered: Sequence[TargetModuleConfig]) -> FurtherArms:
    """Return the submitted rows, or no rows if their management form is invalid."""
    sent = data if data and TOTAL in data else None
    form_set: Any = FurtherArmSet
    rows: FurtherArms = form_set(sent, prefix=PREFIX, form_kwargs={"offered": offered})
    if sent is not None and not rows.management_form.is_valid():
        rows = form_set(None, prefix=PREFIX, form_kwargs={"offered": offered})
    return rows


def arm_name(config: str, shared: Hyperparameters, learn: Hyperparameters) -> str:
    """Return an arm's name: its config, and the settings that differ from the other arms."""
    expected = dataclasses.asdict(shared)
    if shared.lora_alpha == 2 * shared.r:
        expected["lora_alpha"] = 2 * learn.r
    differing = [
        str(label) % {"value": format_number(getattr(learn, name))}
        for name, label in ROW_SETTINGS.items()
        if getattr(learn, name) != expected[name]
    ]
    tail = "".join(f", {setting}" for setting in differing)
    return config[: NAME_LENGTH - len(tail)] + tail
