"""The fine-tune form: dataset, base model, target modules and hyper-parameters.

Parses and validates; the view launches, and `dashboard.forms.training.plan` forecasts.
"""

from __future__ import annotations

import uuid
from typing import Any

from django import forms
from django.db.models import F, Q, QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.forms.training.hyperparameters import HyperparametersForm, defaults, length_missing, to_form
from dashboard.models import BaseModel, Caller, DatasetVersion, Project, TargetModuleConfig, TrainingRun, User
from dashboard.models.catalog.dataset import SAMPLE_NAME
from workers.contract.errors import SpecError
from workers.contract.hyperparameters import Hyperparameters

# Works for the bundled model on the sample; other data starts at the common default.
SAMPLE_LEARNING_RATE = 1e-3
# Field of a SpecError -> field of the form, if they differ.
FIELDS = {"dataset": "dataset_version"}


class VersionField(forms.ModelChoiceField):  # type: ignore[type-arg]
    """A dataset version with its number of rows."""

    def label_from_instance(self, obj: Any) -> str:
        return _("%(version)s, %(rows)s rows") % {"version": obj, "rows": f"{obj.rows or 0:,}"}


class BaseModelField(forms.ModelChoiceField):  # type: ignore[type-arg]
    """A base model with its number of parameters."""

    def label_from_instance(self, obj: Any) -> str:
        millions = f"{(obj.parameters or 0) / 1e6:,.1f}"
        return _("%(name)s, %(millions)s M parameters") % {"name": obj, "millions": millions}


class TrainingRunForm(HyperparametersForm):
    """The fine-tune form. Every field but the dataset has a default."""

    field_order = ("name", "dataset_version", "base_model", "target_module_config")

    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=120,
        required=False,
        help_text=gettext_lazy(
            "The adapter gets this name. Leave empty to use the names of dataset and preset."
        ),
    )
    dataset_version = VersionField(
        label=gettext_lazy("Dataset"),
        queryset=DatasetVersion.objects.none(),
        empty_label=gettext_lazy("Choose a dataset"),
        error_messages={
            "required": gettext_lazy("Choose a dataset."),
            "invalid_choice": gettext_lazy("This dataset is not ready in this project. Choose another."),
        },
    )
    base_model = BaseModelField(
        label=gettext_lazy("Base model"),
        queryset=BaseModel.objects.none(),
        empty_label=None,
        help_text=gettext_lazy("The base model stays frozen; only the adapter is trained."),
        error_messages={
            "required": gettext_lazy("Choose a base model."),
            "invalid_choice": gettext_lazy("This base model is not ready in this project. Choose another."),
        },
    )
    target_module_config = forms.ModelChoiceField(
        label=gettext_lazy("Target modules"),
        queryset=TargetModuleConfig.objects.none(),
        empty_label=None,
        widget=forms.RadioSelect,
        error_messages={
            "required": gettext_lazy("Choose target modules."),
            "invalid_choice": gettext_lazy("There is no such preset in this project. Choose another."),
        },
    )
    confirmed = forms.CharField(
        label=gettext_lazy("I have read this and want to continue"), max_length=64, required=False
    )
    idempotency_key = forms.UUIDField(widget=forms.HiddenInput, required=False)

    def __init__(
        self, data: Any = None, *, caller: Caller, project: Project, initial: dict[str, Any]
    ) -> None:
        super().__init__(data, initial={**defaults(), "idempotency_key": uuid.uuid4(), **initial})
        self.project = project
        self.by = caller if isinstance(caller, User) else None
        self.versions, self.base_models, self.configs = choices(caller, project)
        # A cloned run may have a preset version that is no longer offered.
        versions = TargetModuleConfig.objects.visible_to(caller).filter(Q(project=None) | Q(project=project))
        for name, rows in (
            ("dataset_version", self.versions),
            ("base_model", self.base_models),
            ("target_module_config", versions),
        ):
            self.fields[name].queryset = rows  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        """Build the hyper-parameters, and a default name."""
        values = self.cleaned_data
        if empty := length_missing(values, self.errors):
            self.add_error(empty, _("Enter the length of the training."))
        if not self.errors:
            try:
                values["hyperparameters"] = self.hyperparameters()
            except SpecError as error:
                self.refuse(error)
        return values

    def is_confirmed(self) -> bool:
        """Tell whether the user confirmed this choice's warnings. May raise TargetError."""
        values = self.cleaned_data
        resolution = values["target_module_config"].resolve(values["base_model"])
        return bool(values["confirmed"] == resolution.confirmation_key)

    def refuse(self, error: SpecError) -> None:
        """Show a SpecError beside its field."""
        name = FIELDS.get(error.field, error.field)
        message = _("Read the warnings, then tick this box.") if name == "confirmed" else error.message
        self.add_error(name if name in self.fields else None, message)


def choices(
    caller: Caller, project: Project
) -> tuple[QuerySet[DatasetVersion], QuerySet[BaseModel], QuerySet[TargetModuleConfig]]:
    """Return the dataset versions, base models and target modules that a project can choose from."""
    here = Q(project=None) | Q(project=project)
    versions = (
        DatasetVersion.objects.visible_to(caller)
        .filter(project=project, job__state="succeeded")
        .select_related("dataset", "job")
    )
    base_models = (
        BaseModel.objects.visible_to(caller)
        .filter(here, job__state="succeeded")
        .select_related("job")
        .order_by(F("project").asc(nulls_first=True), "pk")
    )
    return versions, base_models, TargetModuleConfig.objects.current().visible_to(caller).filter(here)


def initial_for(version: DatasetVersion | None) -> dict[str, Any]:
    """Return the form's initial values for a dataset version."""
    if version is None:
        return {}
    initial: dict[str, Any] = {"dataset_version": version.pk}
    if is_sample(version):
        initial["learning_rate"] = SAMPLE_LEARNING_RATE
    return initial


def initial_from(run: TrainingRun) -> dict[str, Any]:
    """Return the form's initial values for a clone of a run."""
    return {
        **to_form(Hyperparameters(**run.hyperparameters)),
        "name": run.name,
        "dataset_version": run.dataset_version_id,
        "base_model": run.base_model_id,
        "target_module_config": run.target_module_config_id,
    }


def is_sample(version: DatasetVersion) -> bool:
    """Tell whether the version is the bundled sample."""
    return version.dataset.name == SAMPLE_NAME
