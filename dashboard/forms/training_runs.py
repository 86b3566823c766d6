"""The fine-tune form: what to learn, on which model and where the adapter sits, with a training's settings.

Parses and checks; launching is the view's, and what the choices mean is `dashboard.forms.plan`'s.
"""

from __future__ import annotations

import uuid
from typing import Any

from django import forms
from django.db.models import F, Q, QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.forms.hyperparameters import (
    HyperparametersForm,
    defaults,
    length_missing,
    to_form,
)
from dashboard.models import BaseModel, Caller, DatasetVersion, Project, TargetModuleConfig, TrainingRun, User
from dashboard.models.dataset import SAMPLE_NAME
from workers.errors import SpecError
from workers.hyperparameters import Hyperparameters

# Seen to work on the bundled model with the sample; other data starts at the common default.
SAMPLE_LEARNING_RATE = 1e-3
# SpecError's field -> the form's, where they differ.
FIELDS = {"dataset": "dataset_version"}


class VersionField(forms.ModelChoiceField):  # type: ignore[type-arg]
    """Choices say how many rows there are."""

    def label_from_instance(self, obj: Any) -> str:
        """Support messages:v2, 600 rows."""
        return _("%(version)s, %(rows)s rows") % {"version": obj, "rows": f"{obj.rows or 0:,}"}


class BaseModelField(forms.ModelChoiceField):  # type: ignore[type-arg]
    """Choices say how large the model is."""

    def label_from_instance(self, obj: Any) -> str:
        """SmolLM2 135M Instruct, 134.5 M parameters."""
        millions = f"{(obj.parameters or 0) / 1e6:,.1f}"
        return _("%(name)s, %(millions)s M parameters") % {"name": obj, "millions": millions}


class TrainingRunForm(HyperparametersForm):
    """Every field has a default, so that a dataset is all one has to choose."""

    field_order = ("name", "dataset_version", "base_model", "target_module_config")

    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=120,
        required=False,
        help_text=gettext_lazy(
            "The adapter takes this name. Left empty, it is made from dataset and preset."
        ),
    )
    dataset_version = VersionField(
        label=gettext_lazy("What should it learn? (dataset)"),
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
        help_text=gettext_lazy("It stays as it is; only the adapter learns."),
        error_messages={
            "required": gettext_lazy("Choose a base model."),
            "invalid_choice": gettext_lazy("This base model is not ready in this project. Choose another."),
        },
    )
    target_module_config = forms.ModelChoiceField(
        label=gettext_lazy("What to train (target modules)"),
        queryset=TargetModuleConfig.objects.none(),
        empty_label=None,
        widget=forms.RadioSelect,
        error_messages={
            "required": gettext_lazy("Choose what to train."),
            "invalid_choice": gettext_lazy("There is no such preset in this project. Choose another."),
        },
    )
    confirmed = forms.CharField(
        label=gettext_lazy("I have read this and want it so"), max_length=64, required=False
    )
    idempotency_key = forms.UUIDField(widget=forms.HiddenInput, required=False)

    def __init__(
        self, data: Any = None, *, caller: Caller, project: Project, initial: dict[str, Any]
    ) -> None:
        super().__init__(data, initial={**defaults(), "idempotency_key": uuid.uuid4(), **initial})
        self.project = project
        self.by = caller if isinstance(caller, User) else None
        self.versions, self.base_models, self.configs = choices(caller, project)
        # A run that is repeated may name an earlier version than those that are offered.
        versions = TargetModuleConfig.objects.visible_to(caller).filter(Q(project=None) | Q(project=project))
        for name, rows in (
            ("dataset_version", self.versions),
            ("base_model", self.base_models),
            ("target_module_config", versions),
        ):
            self.fields[name].queryset = rows  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        """Build the hyper-parameters; the name, when left empty, from what was chosen."""
        values = self.cleaned_data
        if empty := length_missing(values, self.errors):
            self.add_error(empty, _("Say how long the run shall be."))
        if not self.errors:
            try:
                values["hyperparameters"] = self.hyperparameters()
            except SpecError as error:
                self.refuse(error)
            values["name"] = values["name"] or TrainingRun.default_name(
                values["dataset_version"], values["target_module_config"]
            )
        return values

    def is_confirmed(self) -> bool:
        """Whether the very sentences were ticked that this choice wants accepted. May raise TargetError."""
        values = self.cleaned_data
        resolution = values["target_module_config"].resolve(values["base_model"])
        return bool(values["confirmed"] == resolution.confirmation_key)

    def refuse(self, error: SpecError) -> None:
        """Put what the spec refused beside its field."""
        name = FIELDS.get(error.field, error.field)
        message = _("Read what it says beside this, and tick it.") if name == "confirmed" else error.message
        self.add_error(name if name in self.fields else None, message)


def choices(
    caller: Caller, project: Project
) -> tuple[QuerySet[DatasetVersion], QuerySet[BaseModel], QuerySet[TargetModuleConfig]]:
    """Data, models and target modules that may be chosen in a project."""
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
    """Values that a dataset version brings with it."""
    if version is None:
        return {}
    initial: dict[str, Any] = {"dataset_version": version.pk}
    if is_sample(version):
        initial["learning_rate"] = SAMPLE_LEARNING_RATE
    return initial


def initial_from(run: TrainingRun) -> dict[str, Any]:
    """The settings of an earlier run."""
    return {
        **to_form(Hyperparameters(**run.hyperparameters)),
        "name": run.name,
        "dataset_version": run.dataset_version_id,
        "base_model": run.base_model_id,
        "target_module_config": run.target_module_config_id,
    }


def is_sample(version: DatasetVersion) -> bool:
    """Whether the rows are the ones that came with the product."""
    return version.dataset.name == SAMPLE_NAME
