"""Inputs shared by runs, forecasts and studies: dataset, target modules and hyperparameters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from django.http import Http404
from django.utils.translation import gettext as _
from ninja import Schema
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    create_model,
)

from dashboard.api.access import Call
from dashboard.api.catalog import datasets
from dashboard.api.refusals import Refusal, unknown
from dashboard.models import DatasetVersion, TargetModuleConfig
from dashboard.models.accounts.project import parse_id
from dashboard.models.training.automatic import ChosenSettings
from workers.contract.hyperparameters import AUTOMATIC, AUTOMATIC_LENGTHS, DEFAULT_LENGTH, SETTINGS, Setting


def id_or_slug(value: Any) -> int | str:
    """Accept an id or a slug."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError(_("`target_module_config` must be an id or a preset's slug."))
    return value


IdOrSlug = Annotated[
    Any,
    BeforeValidator(id_or_slug),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}], "examples": ["efficient"]}),
]


STRICT: dict[type, Any] = {int: StrictInt, float: StrictFloat, bool: StrictBool, str: StrictStr}


def strict_type(setting: Setting) -> Any:
    """Return the type of a setting in a request; an automatic one may be left out or be the word."""
    kind = STRICT[setting.kind] | None
    if not setting.may_be_automatic:
        return kind
    # No union, whose errors would name the parts of the type as fields.
    leave_out = BeforeValidator(lambda value: None if value == AUTOMATIC else value)
    choices = [{"type": "number"}, {"const": AUTOMATIC, "type": "string"}, {"type": "null"}]
    return Annotated[kind, leave_out, WithJsonSchema({"anyOf": choices})]


LENGTHS = " ".join(f"`{length.name}`: {length.explanation}" for length in AUTOMATIC_LENGTHS.values())
HYPERPARAMETERS: dict[str, Any] = {
    "length": (
        Literal[tuple(AUTOMATIC_LENGTHS)] | None,
        Field(
            None,
            description="Training length that is chosen for the dataset and the device, if neither "
            f"`max_steps` nor `num_train_epochs` is given. {LENGTHS} Default: `{DEFAULT_LENGTH}`.",
        ),
    ),
    **{
        name: (
            strict_type(setting),
            Field(None, description=f"{setting.label}. {setting.explanation}"),
        )
        for name, setting in SETTINGS.items()
    },
}


class HyperparametersIn(create_model("Hyperparameters", __base__=Schema, **HYPERPARAMETERS)):  # type: ignore[misc]
    """Hyperparameters of a run; limits and defaults are those of the form.

    Without `learning_rate`, or with `auto`, the rate is chosen for the base model; without a length the
    steps are chosen. The answer holds the numbers that were chosen.
    """

    model_config = ConfigDict(extra="forbid")

    def chosen(self) -> ChosenSettings:
        """Return the settings as chosen. Raises SpecError."""
        return ChosenSettings.of(self.dict())


def newest_version(request: Call, pk: int, field: str = "dataset") -> DatasetVersion:
    """Return the newest imported version of the dataset."""
    try:
        version = datasets.fetch(request, pk).newest_ready()
    except Http404 as error:
        raise unknown(field, _("dataset")) from error
    if version is None:
        message = _("No version of this dataset is imported yet. Look at its state first.")
        raise Refusal(409, "not_ready", message, field)
    return version


def config_of(request: Call, id_or_name: int | str) -> TargetModuleConfig:
    """Return the configuration with this id (number or text), or the preset with this slug."""
    visible, pk = TargetModuleConfig.objects.visible_to(request.auth), parse_id(str(id_or_name))
    config = None
    if pk is not None:
        config = visible.filter(pk=pk).first()
    elif str(id_or_name).isprintable():  # PostgreSQL cannot compare text with NUL characters.
        config = visible.filter(slug=id_or_name, project=None).first()
    if config is None:
        raise unknown("target_module_config", _("choice of target modules"))
    return config
