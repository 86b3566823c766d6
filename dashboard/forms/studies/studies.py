"""The form of a study: data, arms, seeds, budget, metric, reference and margin.

The view launches; `dashboard.forms.studies.study_costs` estimates the costs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.forms.studies.study_arms import FurtherArmForm, further_arms
from dashboard.forms.training.hyperparameters import EXPERT, LaunchForm, format_number
from dashboard.models import ArmPlan, Study, TargetModuleConfig
from dashboard.models.catalog.metrics import METRICS, REGEX, STUDY_METRICS
from dashboard.models.studies.plan import (
    DEFAULT_MARGIN,
    DEFAULT_SEEDS,
    LEAST_HOURS,
    MOST_HOURS,
    MOST_RATES,
    MOST_SEEDS,
    MOST_TEST_ROWS,
    TEST_ROWS,
    check_metric,
    check_names,
)
from workers.contract.errors import SpecError
from workers.contract.hyperparameters import LIMITS
from workers.statistics.regex_metric import PATTERN_LETTERS
from workers.target_modules.resolution import Resolution

# A margin of 3 points is stored as 0.03.
POINTS = 100
# Fields that the fine-tune form prefills; the seeds have a field of their own.
CARRIED = (
    *("dataset_version", "base_model", "length", "max_steps", "num_train_epochs"),
    *(name for name in EXPERT if name != "seed"),
)


def _integer_field(label: Any, low: int, high: int, help_text: Any) -> forms.IntegerField:
    limits = {"low": f"{low:,}", "high": f"{high:,}"}
    message = gettext_lazy("Enter a whole number from %(low)s to %(high)s.") % limits
    return forms.IntegerField(
        label=label,
        help_text=help_text,
        min_value=low,
        max_value=high,
        error_messages=dict.fromkeys(("invalid", "min_value", "max_value"), message),
        widget=forms.NumberInput(attrs={"inputmode": "numeric"}),
    )


class StudyForm(LaunchForm):
    """The study form."""

    without = ("seed",)
    spec_fields: ClassVar[Mapping[str, str]] = {
        **LaunchForm.spec_fields,
        "arms": "configs",
        "target_module_config": "configs",
        "reference": "compared_with",
    }
    confirmation_request = gettext_lazy("Read the warnings beside this form and accept them.")

    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=120,
        required=False,
        help_text=gettext_lazy("If empty, the name is made from the dataset."),
    )
    # No model field, as that queries the database for any number that was sent.
    configs = forms.TypedMultipleChoiceField(
        label=gettext_lazy("Arms"),
        coerce=int,
        required=False,
        error_messages={
            "invalid_choice": gettext_lazy("There is no such preset in this project. Choose another."),
        },
    )
    seeds = _integer_field(
        gettext_lazy("Seeds per arm"),
        1,
        MOST_SEEDS,
        gettext_lazy(
            "Each arm is trained once per random seed. Fewer than 3 seeds give an indication, but no verdict."
        ),
    )
    budget = forms.ChoiceField(
        label=gettext_lazy("Budget"), choices=Study.Budget.choices, widget=forms.RadioSelect
    )
    learning_rates = forms.CharField(
        label=gettext_lazy("Learning rate search"),
        max_length=200,
        required=False,
        help_text=gettext_lazy(
            "If empty, every arm uses the learning rate below. Otherwise each arm tries these rates in short "
            "runs and keeps the one with the lowest validation loss."
        ),
        widget=forms.TextInput(attrs={"inputmode": "text", "autocomplete": "off"}),
    )
    metric = forms.ChoiceField(
        label=gettext_lazy("Metric"),
        choices=[
            ("", gettext_lazy("Main metric of the dataset")),
            *((name, METRICS[name].label) for name in STUDY_METRICS),
        ],
        required=False,
    )
    pattern = forms.CharField(
        label=gettext_lazy("Pattern"),
        max_length=PATTERN_LETTERS,
        required=False,
        help_text=gettext_lazy(
            r"A regular expression that a correct answer contains, such as total: \d+. With a group, "
            r"total: (\d+), the group must match the same text in the answer as in the expected answer."
        ),
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
    compared_with = forms.ChoiceField(
        label=gettext_lazy("Reference arm"),
        help_text=gettext_lazy(
            "Every other arm is compared with this one. It cannot be changed after the start."
        ),
        error_messages=dict.fromkeys(
            ("required", "invalid_choice"), gettext_lazy("Choose one of the arms as the reference.")
        ),
    )
    margin = forms.FloatField(
        label=gettext_lazy("Margin (points)"),
        min_value=0,
        max_value=POINTS,
        help_text=gettext_lazy(
            "How much worse an arm may be and still pass for as good. With 3 points, 87 % is as good as "
            "90 %. For a loss: hundredths of a nat."
        ),
        error_messages=dict.fromkeys(
            ("invalid", "min_value", "max_value"), gettext_lazy("Enter a number from 0 to 100.")
        ),
        widget=forms.NumberInput(attrs={"step": "any", "inputmode": "decimal"}),
    )
    max_hours = forms.FloatField(
        label=gettext_lazy("How long may it take? (hours)"),
        required=False,
        min_value=LEAST_HOURS,
        max_value=MOST_HOURS,
        help_text=gettext_lazy(
            "Computing time, after which no further seed starts. If empty, the study ends when every arm is "
            "decided, or with the last seed."
        ),
        error_messages=dict.fromkeys(
            ("invalid", "min_value", "max_value"),
            gettext_lazy("Enter hours from %(least)s to %(most)s, or leave it empty.")
            % {"least": LEAST_HOURS, "most": f"{MOST_HOURS:,}"},
        ),
        widget=forms.NumberInput(attrs={"step": "any", "inputmode": "decimal"}),
    )
    test_rows = _integer_field(
        gettext_lazy("Maximum test rows"),
        1,
        MOST_TEST_ROWS,
        gettext_lazy("More rows show smaller differences and take longer to evaluate."),
    )
    again = forms.BooleanField(
        label=gettext_lazy("Train every run again"),
        required=False,
        help_text=gettext_lazy(
            "Otherwise, finished runs of this project with equal settings, data, base model and seed are "
            "used as they are."
        ),
    )

    def __init__(self, data: Any = None, *, initial: dict[str, Any], **options: Any) -> None:
        initial_values = {
            "seeds": len(DEFAULT_SEEDS),
            "budget": Study.Budget.EQUAL_RANK.value,
            "metric": "",
            "margin": f"{POINTS * DEFAULT_MARGIN:g}",
            "test_rows": TEST_ROWS,
        }
        super().__init__(data, initial={**initial_values, **initial}, **options)
        known = [(config.pk, str(config)) for config in self.offered]
        self.fields["configs"].choices = known  # type: ignore[attr-defined]
        self.further = further_arms(data, self.offered)
        further = [
            (str(form.prefix), _("Further arm %(number)d") % {"number": number})
            for number, form in enumerate(self.further.forms, 1)
        ]
        self.fields["compared_with"].choices = [*((str(pk), name) for pk, name in known), *further]  # type: ignore[attr-defined]

    def chosen_configs(self) -> list[TargetModuleConfig]:
        """Return the target modules of the ticked and of the further arms."""
        further = [form.offered[form.cleaned_data["config"]] for form in self._filled()]
        return [*(self.cleaned_data.get("configs") or []), *further]

    def clean_configs(self) -> list[TargetModuleConfig]:
        """Return the ticked configs in the order of the form."""
        return [config for config in self.offered if config.pk in self.cleaned_data["configs"]]

    def clean_learning_rates(self) -> list[float]:
        """Parse numbers separated by commas or spaces."""
        texts = [text for text in re.split(r"[,;\s]+", self.cleaned_data["learning_rates"]) if text]
        if len(set(texts)) < len(texts) or len(texts) > MOST_RATES:
            raise forms.ValidationError(
                _("Name up to %(most)d different rates."), params={"most": MOST_RATES}
            )
        low, high = LIMITS["learning_rate"]
        rates = []
        for text in texts:
            try:
                rate = float(text)
            except ValueError:
                rate = 0.0
            if not low <= rate <= high:
                raise forms.ValidationError(
                    _("`%(text)s` is no rate from %(low)s to %(high)s. Write them as 0.0002, 0.001."),
                    params={"text": text[:30], "low": format_number(low), "high": format_number(high)},
                )
            rates.append(rate)
        return rates

    def clean(self) -> dict[str, Any]:
        """Build the arms."""
        values = super().clean()
        self._check_further(values)
        keys, reference = self._keys(), values.get("compared_with")
        if "configs" not in self.errors and len(keys) < 2:
            self.add_error("configs", _("Tick at least two arms."))
        elif reference and reference not in keys:
            self.add_error("compared_with", _("Choose one of the arms as the reference."))
        if not self.errors:
            # The field is hidden for other metrics, so its text is ignored.
            values["pattern"] = values["pattern"] if values["metric"] == REGEX else ""
            version = values["dataset_version"]
            try:
                values["arms"] = self.arms()
                check_metric(values["metric"] or version.main_metric, values["pattern"], version)
            except SpecError as error:
                self.refuse(error)
        return values

    def to_confirm(self) -> Resolution:
        """Return the warnings about the arms' target modules as one list. Raises TargetError."""
        base_model = self.cleaned_data.get("base_model")
        if base_model is None:
            return Resolution()
        configs = {plan.config.pk: plan.config for plan in self._plans().values()}
        return Resolution(
            confirmations=tuple(
                f"{config}: {warning}"
                for config in configs.values()
                for warning in config.resolve(base_model).confirmations
            )
        )

    def is_confirmed(self) -> bool:
        """Return whether exactly these warnings were accepted. Raises TargetError."""
        return bool(self.cleaned_data["confirmed"] == self.to_confirm().confirmation_key)

    def arms(self) -> list[ArmPlan]:
        """Return the arms: ticked configs with the shared settings, and further arms. Raises SpecError."""
        plans = list(self._plans().values())
        check_names(plans)
        return plans

    def _plans(self) -> dict[str, ArmPlan]:
        """Return value of `compared_with` -> arm."""
        learn = self.hyperparameters()
        configs = self.cleaned_data.get("configs") or []
        ticked = {str(config.pk): ArmPlan(str(config.name), config, learn) for config in configs}
        return ticked | {str(form.prefix): form.plan(learn) for form in self._filled()}

    def _filled(self) -> list[FurtherArmForm]:
        return [form for form in self.further.forms if form.is_filled]

    def _keys(self) -> set[str]:
        ticked = {str(config.pk) for config in self.cleaned_data.get("configs") or []}
        return ticked | {str(form.prefix) for form in self._filled()}

    def _check_further(self, values: dict[str, Any]) -> None:
        """Refuse invalid rows, and settings that the budget or the search determines."""
        for form in self._filled():
            if values.get("budget") == Study.Budget.EQUAL_PARAMETERS:
                form.forbid(
                    ("r", "lora_alpha"), _("Equal parameters set the rank of each arm. Leave this empty.")
                )
            if values.get("learning_rates"):
                form.forbid(
                    ("learning_rate",),
                    _("Every arm tries the rates of the search. Leave this or the search empty."),
                )
        for error in self.further.row_errors():
            self.add_error(None, error)

    def reference(self) -> str:
        return self._plans()[self.cleaned_data["compared_with"]].name

    def margin_in_unit(self) -> float:
        """Return the margin as stored: 3 points are 0.03."""
        return float(self.cleaned_data["margin"]) / POINTS
