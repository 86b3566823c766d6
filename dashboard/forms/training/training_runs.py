"""The fine-tune form: one choice of target modules beside what every launch asks for."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy

from dashboard.forms.training.hyperparameters import LaunchForm, VersionField, to_form
from dashboard.forms.training.offer import RowField
from dashboard.models import TargetModuleConfig, TrainingRun
from workers.contract.hyperparameters import Hyperparameters


class TrainingRunForm(LaunchForm):
    """The fine-tune form."""

    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=120,
        required=False,
        help_text=gettext_lazy(
            "The adapter gets this name. Leave empty to use the names of dataset and preset."
        ),
    )
    # Shown for a clone of a run that has it: programs choose it.
    validation_version = VersionField(
        label=gettext_lazy("Validation dataset"),
        required=False,
        empty_label=gettext_lazy("Validation rows of the dataset above"),
        help_text=gettext_lazy("All of its rows are validation rows."),
        error_messages={
            "invalid_choice": gettext_lazy("This dataset is not ready in this project. Choose another.")
        },
    )
    target_module_config = RowField(
        label=gettext_lazy("Target modules"),
        widget=forms.RadioSelect,
        error_messages={
            "required": gettext_lazy("Choose target modules."),
            "invalid_choice": gettext_lazy("There is no such preset in this project. Choose another."),
        },
    )

    def __init__(self, data: Any = None, **options: Any) -> None:
        super().__init__(data, **options)
        self.fields["target_module_config"].offer(self.offer.configs)  # type: ignore[attr-defined]
        self.fields["validation_version"].offer(self.offer.versions)  # type: ignore[attr-defined]

    def chosen_configs(self) -> list[TargetModuleConfig]:
        """Return the chosen target modules, if any."""
        config = self.cleaned_data.get("target_module_config")
        return [config] if config else []

    def is_confirmed(self) -> bool:
        """Return whether the user confirmed this choice's warnings. May raise TargetError."""
        values = self.cleaned_data
        resolution = values["target_module_config"].resolve(values["base_model"])
        return bool(values["confirmed"] == resolution.confirmation_key)


def initial_from(run: TrainingRun) -> dict[str, Any]:
    """Return the form's initial values for a clone of a run."""
    return {
        **to_form(Hyperparameters(**run.hyperparameters)),
        "name": run.name,
        "dataset_version": run.dataset_version_id,
        "validation_version": run.validation_version_id,
        "base_model": run.base_model_id,
        "target_module_config": run.target_module_config_id,
    }
