"""The form that starts training, and its fields built from `workers.contract.hyperparameters.SETTINGS`.

Parses and validates; the views launch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from django import forms
from django.utils.text import format_lazy
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.forms.training.offer import Offer, RowField
from dashboard.models import BaseModel, Caller, Project, TargetModuleConfig, User
from dashboard.models.jobs.worker_node import NO_4BIT_WORKER
from dashboard.models.training.automatic import ChosenSettings, learning_rate_of
from dashboard.models.training.forecast import RunForecaster
from workers.contract.errors import SpecError, TargetError
from workers.contract.hyperparameters import (
    ADAPTER,
    AUTOMATIC_LENGTHS,
    BATCHES,
    DEFAULT_LENGTH,
    LENGTH,
    OPTIMIZER,
    SETTINGS,
    Hyperparameters,
    Setting,
)

DEFAULTS = Hyperparameters()
# Lengths of one's own, beside the automatic ones -> the field with the number.
STEPS, EPOCHS = "steps", "epochs"
OWN_LENGTHS = {STEPS: "max_steps", EPOCHS: "num_train_epochs"}
EXPERT = tuple(name for name, setting in SETTINGS.items() if setting.group != LENGTH)
# Headings of the expert settings.
GROUPS = {
    ADAPTER: gettext_lazy("Adapter"),
    OPTIMIZER: gettext_lazy("Optimizer"),
    BATCHES: gettext_lazy("Batches and memory"),
}


class VersionField(RowField):
    """A dataset version with its number of rows."""

    def label_from_instance(self, obj: Any) -> str:
        return _("%(version)s, %(rows)s rows") % {"version": obj, "rows": f"{obj.rows or 0:,}"}


class BaseModelField(RowField):
    """A base model with its millions of parameters."""

    def label_from_instance(self, obj: Any) -> str:
        millions = f"{(obj.parameters or 0) / 1e6:,.1f}"
        return _("%(name)s (%(millions)s M)") % {"name": obj, "millions": millions}


class LaunchForm(forms.Form):
    """Data, base model, training length and expert settings: what a fine-tune and a study both ask for.

    Every field but the dataset has a default.
    """

    field_order = ("name", "dataset_version", "base_model", "target_module_config")
    # A study has seeds of its own.
    without: tuple[str, ...] = ()
    # Field of a SpecError -> field of the form, if they differ.
    spec_fields: ClassVar[Mapping[str, str]] = {
        "dataset": "dataset_version",
        "validation_dataset": "validation_version",
    }
    confirmation_request: Any = gettext_lazy("Read the warnings, then tick this box.")

    dataset_version = VersionField(
        label=gettext_lazy("Dataset"),
        empty_label=gettext_lazy("Choose a dataset"),
        error_messages={
            "required": gettext_lazy("Choose a dataset."),
            "invalid_choice": gettext_lazy("This dataset is not ready in this project. Choose another."),
        },
    )
    base_model = BaseModelField(
        label=gettext_lazy("Base model"),
        help_text=gettext_lazy("The base model stays frozen; only the adapter is trained."),
        error_messages={
            "required": gettext_lazy("Choose a base model."),
            "invalid_choice": gettext_lazy("This base model is not ready in this project. Choose another."),
        },
    )
    length = forms.ChoiceField(
        label=gettext_lazy("Training length"),
        choices=[
            *((length.name, length.label) for length in AUTOMATIC_LENGTHS.values()),
            (STEPS, gettext_lazy("Steps")),
            (EPOCHS, gettext_lazy("Epochs")),
        ],
        widget=forms.RadioSelect,
    )
    confirmed = forms.CharField(
        label=gettext_lazy("I have read this and want to continue"), max_length=64, required=False
    )
    idempotency_key = forms.UUIDField(widget=forms.HiddenInput, required=False)

    def __init__(
        self,
        data: Any = None,
        *,
        caller: Caller,
        project: Project,
        initial: dict[str, Any],
        offer: Offer | None = None,
    ) -> None:
        super().__init__(data, initial={**defaults(), "idempotency_key": uuid.uuid4(), **initial})
        self.offer = offer or Offer.load(caller, project)
        for name, setting in SETTINGS.items():
            if name not in self.without:
                self.fields[name] = setting_field(setting)
        if not self.offer.has_4bit:
            refuse_4bit(self.fields["load_in_4bit"], is_on=bool((data or self.initial).get("load_in_4bit")))
        self.caller, self.project = caller, project
        self.by = caller if isinstance(caller, User) else None
        self.offered = self.offer.current_configs
        self.fields["dataset_version"].offer(self.offer.versions)  # type: ignore[attr-defined]
        self.fields["base_model"].offer(self.offer.base_models)  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        """Build the hyperparameters."""
        values = self.cleaned_data
        chosen = OWN_LENGTHS.get(values.get("length", ""))
        if chosen and values.get(chosen) is None and chosen not in self.errors:
            self.add_error(chosen, _("Enter the length of the training."))
        if not self.errors:
            try:
                values["hyperparameters"] = self.hyperparameters()
            except SpecError as error:
                self.refuse(error)
        return values

    def hyperparameters(self) -> Hyperparameters:
        """Return what was entered where it is valid, automatic numbers and defaults for the rest.

        May raise SpecError.
        """
        return self._hyperparameters

    @functools.cached_property
    def _hyperparameters(self) -> Hyperparameters:
        # Cached, because a plan asks for them many times.
        entered = self.cleaned_data
        values = {name: entered[name] for name in EXPERT if entered.get(name) is not None}
        chosen = OWN_LENGTHS.get(entered.get("length", ""))
        if chosen is None:
            values["length"] = entered.get("length")
        elif entered.get(chosen) is not None:
            values[chosen] = entered[chosen]
        settings = ChosenSettings.of(values)
        try:
            return settings.resolve(self.forecaster, self.chosen_configs())
        except TargetError:
            return settings.resolve(None)  # The launch refuses a census of another version.

    @functools.cached_property
    def forecaster(self) -> RunForecaster | None:
        """The forecaster of the chosen base model and dataset; None without a base model."""
        names = ("base_model", "dataset_version", "validation_version")
        base_model, version, validation = (self.cleaned_data.get(name) for name in names)
        return RunForecaster.load(base_model, version, validation) if base_model else None

    def chosen_configs(self) -> list[TargetModuleConfig]:
        """Return the target modules that the form would train."""
        raise NotImplementedError

    def refuse(self, error: SpecError) -> None:
        """Show a SpecError beside its field."""
        name = self.spec_fields.get(error.field, error.field)
        message = str(self.confirmation_request) if name == "confirmed" else error.message
        self.add_error(name if name in self.fields else None, message)

    def automatic_lengths(self) -> list[tuple[Any, str]]:
        """Return the option of each automatic length with its explanation."""
        options = [option for option in self["length"] if option.data["value"] in AUTOMATIC_LENGTHS]
        return [(option, AUTOMATIC_LENGTHS[option.data["value"]].explanation) for option in options]

    def own_lengths(self) -> list[tuple[Any, forms.BoundField]]:
        """Return the option of each length of one's own with the field of its number."""
        options = [option for option in self["length"] if option.data["value"] in OWN_LENGTHS]
        return [(option, self[OWN_LENGTHS[option.data["value"]]]) for option in options]

    def has_own_values(self) -> bool:
        """Return whether length or learning rate is not automatic, so that their section has to be open."""
        names = (*OWN_LENGTHS.values(), "learning_rate")
        own_length = self["length"].value() in OWN_LENGTHS
        return own_length or bool(self["learning_rate"].value()) or any(name in self.errors for name in names)

    def groups(self) -> list[tuple[str, list[forms.BoundField]]]:
        """Return the expert settings under their headings."""
        offered = [name for name in EXPERT if name in self.fields and not SETTINGS[name].may_be_automatic]
        return [
            (str(title), [self[name] for name in offered if SETTINGS[name].group == group])
            for group, title in GROUPS.items()
        ]

    def has_expert_errors(self) -> bool:
        """Return whether an expert setting was refused, so that its section has to be open."""
        return any(field.errors for _title, fields in self.groups() for field in fields)

    # A form that was not sent yet

    def choose_data(self) -> None:
        """Preselect the first base model, which is the bundled one, and a sole dataset."""
        self.initial.setdefault("base_model", next((model.pk for model in self.offer.base_models), None))
        if len(self.offer.versions) == 1:
            self.initial.setdefault("dataset_version", self.offer.versions[0].pk)

    def initial_base_model(self) -> BaseModel | None:
        """Return the preselected base model, if it can be chosen."""
        with contextlib.suppress(forms.ValidationError):
            chosen: BaseModel = self.fields["base_model"].clean(self.initial.get("base_model"))
            return chosen
        return None

    def draft(self) -> Self:
        """Return the prefilled form as if it had been sent, to estimate with."""
        data = {name: "" if value is None else value for name, value in self.initial.items()}
        draft = type(self)(data, caller=self.caller, project=self.project, initial={}, offer=self.offer)
        draft.full_clean()
        return draft


def setting_field(setting: Setting, **options: Any) -> forms.Field:
    """Return the form field of one hyperparameter; `options` replace what the definition says."""
    values: dict[str, Any] = {
        "label": setting.label,
        "help_text": _help(setting),
        "required": setting.kind is not bool and setting.default is not None and not setting.may_be_automatic,
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
    if setting.may_be_automatic:
        attributes["placeholder"] = _("automatic")
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


def refuse_4bit(field: forms.Field, *, is_on: bool) -> None:
    """Disable a 4-bit base model, as no worker supports it, and say why; it can still be turned off."""
    field.widget.attrs["disabled"] = not is_on
    field.help_text = format_lazy(
        "{} {} {}", field.help_text, gettext_lazy("Not available now:"), NO_4BIT_WORKER
    )


def defaults() -> dict[str, Any]:
    """Return the form's initial values: length and learning rate are automatic, alpha follows the rank."""
    automatic = {name: None for name, setting in SETTINGS.items() if setting.may_be_automatic}
    values = {**to_form(DEFAULTS), "num_train_epochs": 3.0, **automatic, "length": DEFAULT_LENGTH}
    # As the choice spells it, for the page's script.
    return values | {name: str(values[name]) for name in EXPERT if SETTINGS[name].choices}


def to_form(hyperparameters: Hyperparameters) -> dict[str, Any]:
    """Return the form's values for these hyperparameters; an alpha of twice the rank is left empty."""
    values = {name: getattr(hyperparameters, name) for name in EXPERT}
    if hyperparameters.lora_alpha == 2 * hyperparameters.r:
        values["lora_alpha"] = None
    by_epochs = hyperparameters.num_train_epochs is not None
    length = "num_train_epochs" if by_epochs else "max_steps"
    return {**values, "length": EPOCHS if by_epochs else STEPS, length: getattr(hyperparameters, length)}


def differences(hyperparameters: Hyperparameters, base_model: BaseModel | None) -> list[tuple[str, str, str]]:
    """Return (name, value, default) of every setting that is not its default; the length has none.

    Alpha's default follows the rank, the learning rate's the base model.
    """
    usual = dataclasses.replace(DEFAULTS, lora_alpha=2 * hyperparameters.r)
    # A census of another version has no automatic rate.
    with contextlib.suppress(TargetError):
        if base_model:
            usual = dataclasses.replace(usual, learning_rate=learning_rate_of(base_model))
    pairs = ((name, getattr(hyperparameters, name), getattr(usual, name)) for name in EXPERT)
    return [
        (name, format_value(value, name), format_value(default, name))
        for name, value, default in pairs
        if value != default and value is not None
    ]


def format_value(value: Any, name: str) -> str:
    """Return the setting `name` as text: 0.00002 rather than 2e-05, yes rather than True."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        labels = dict(SETTINGS[name].choices) if name in SETTINGS else {}
        return labels.get(str(value)) or (_("yes") if value else _("no"))
    return format_number(value) if isinstance(value, int | float) else str(value)


def format_number(value: float) -> str:
    """Return a number as text: 512, 131,072, 0.1, 0.0000001."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.10f}".rstrip("0")
