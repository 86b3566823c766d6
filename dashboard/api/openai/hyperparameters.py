"""The body of a new job, and its hyperparameters in OpenAI's words: epochs, batch size, multiplier."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Any

from django.utils.translation import gettext as _
from ninja import Schema
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
)

from dashboard.api.refusals import Refusal, invalid
from dashboard.api.texts import one_line, storable
from dashboard.models import BaseModel, TrainingRun
from dashboard.models.training.automatic import learning_rate_of
from workers.contract.errors import SpecError
from workers.contract.hyperparameters import AUTOMATIC, Hyperparameters
from workers.target_modules.presets import RECOMMENDED

# Rows in one batch of a device; larger batches are accumulated, which gives the same steps.
MOST_ROWS_AT_ONCE = 8
PAIRS, KEY_LENGTH, VALUE_LENGTH, SUFFIX_LENGTH = 16, 64, 512, 64
NAMES = {
    "num_train_epochs": "n_epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "batch_size",
    "learning_rate": "learning_rate_multiplier",
}
# Fields of a SpecError that are no hyperparameters.
PARAMETERS = {
    "confirmed": "confirmed",
    "seed": "seed",
    "target_module_config": "preset",
    "validation_dataset": "validation_file",
}
EXTRAS = ("r", "lora_alpha", "lora_dropout", "preset")

automatic = BeforeValidator(lambda value: None if value == AUTOMATIC else value)
Preset = Annotated[StrictStr, Field(max_length=120), AfterValidator(storable)]
Key = Annotated[StrictStr, Field(max_length=KEY_LENGTH), AfterValidator(storable)]
Value = Annotated[StrictStr, Field(max_length=VALUE_LENGTH), AfterValidator(storable)]


class HyperparametersIn(Schema):
    """OpenAI's three hyperparameters, and the LoRA settings of Graftworks."""

    model_config = ConfigDict(extra="forbid")

    n_epochs: Annotated[StrictFloat | None, automatic] = None
    batch_size: Annotated[StrictInt | None, automatic] = None
    learning_rate_multiplier: Annotated[StrictFloat | None, automatic] = None
    r: StrictInt | None = None
    lora_alpha: StrictInt | None = None
    lora_dropout: StrictFloat | None = None
    preset: Preset | None = None


class SupervisedIn(Schema):
    """The settings of supervised fine-tuning."""

    model_config = ConfigDict(extra="forbid")

    hyperparameters: HyperparametersIn | None = None


class MethodIn(Schema):
    """The method; supervised fine-tuning is the only one."""

    model_config = ConfigDict(extra="forbid")

    type: StrictStr = "supervised"
    supervised: SupervisedIn | None = None
    dpo: Any = None
    reinforcement: Any = None


@dataclass(frozen=True)
class Choices:
    """Settings under their names in the product; `place` is where in the body they stood."""

    values: dict[str, Any]
    preset: str
    confirmed: bool
    place: str


class JobIn(Schema):
    """A job to create. `r`, `lora_alpha`, `lora_dropout` and `preset` may also stand beside `model`.

    `confirmed` accepts the warnings of a preset. All rows of `validation_file` are the validation rows, in
    place of those that the import took out of the training file, which are then not used. Test rows are those
    of the training file.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: StrictStr
    training_file: StrictStr
    validation_file: StrictStr | None = None
    suffix: Annotated[StrictStr, Field(max_length=SUFFIX_LENGTH), AfterValidator(one_line)] | None = None
    seed: StrictInt | None = None
    metadata: Annotated[dict[Key, Value], Field(max_length=PAIRS)] | None = None
    method: MethodIn | None = None
    hyperparameters: HyperparametersIn | None = None
    integrations: list[Any] | None = None
    r: StrictInt | None = None
    lora_alpha: StrictInt | None = None
    lora_dropout: StrictFloat | None = None
    preset: Preset | None = None
    confirmed: StrictBool = False

    def refuse_unsupported(self) -> None:
        """Refuse what would otherwise be ignored."""
        if self.method and self.method.type != "supervised":
            raise invalid("method.type", _("`method.type` must be supervised."))
        for name in ("dpo", "reinforcement"):
            if self.method and getattr(self.method, name) is not None:
                raise invalid(f"method.{name}", _("Only supervised fine-tuning is available."))

    def chosen(self, base_model: BaseModel) -> Choices:
        """Return the settings of the request; those of `method` come before the older place."""
        given, place = HyperparametersIn(), ""
        if self.method and self.method.supervised and self.method.supervised.hyperparameters:
            given, place = self.method.supervised.hyperparameters, "method.supervised.hyperparameters."
        elif self.hyperparameters:
            given, place = self.hyperparameters, "hyperparameters."
        extras = {name: first(getattr(given, name), getattr(self, name)) for name in EXTRAS}
        preset = extras.pop("preset") or RECOMMENDED
        values = {
            **extras,
            **rows_per_step(given.batch_size, place),
            "num_train_epochs": given.n_epochs,
            "learning_rate": rate(base_model, given.learning_rate_multiplier, place),
            "seed": secrets.randbelow(2**31) if self.seed is None else self.seed,
        }
        return Choices(values, preset, self.confirmed, place)


def first(*values: Any) -> Any:
    """Return the first value that is given."""
    return next((value for value in values if value is not None), None)


def rows_per_step(batch_size: int | None, place: str) -> dict[str, int]:
    """Return batch and accumulation for this many rows in a step."""
    if batch_size is None:
        return {}
    if not 1 <= batch_size <= 1024:
        raise invalid(f"{place}batch_size", _("`batch_size` must lie between 1 and 1,024."))
    rows = next(rows for rows in range(min(batch_size, MOST_ROWS_AT_ONCE), 0, -1) if batch_size % rows == 0)
    return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": batch_size // rows}


def rate(base_model: BaseModel, multiplier: float | None, place: str) -> float | None:
    """Return the automatic learning rate of the base model, scaled."""
    if multiplier is None:
        return None
    if not multiplier > 0:
        raise invalid(
            f"{place}learning_rate_multiplier", _("`learning_rate_multiplier` must be larger than 0.")
        )
    return learning_rate_of(base_model) * multiplier


def renamed(error: SpecError, place: str) -> Refusal:
    """Return the refusal of a setting under the name that the request used."""
    name = PARAMETERS.get(error.field)
    field = name or f"{place}{NAMES.get(error.field, error.field)}"
    status = 409 if error.field in ("dataset", "base_model") else 400
    return Refusal(status, "invalid", error.message, field)


def resolved(run: TrainingRun) -> dict[str, Any]:
    """Return the hyperparameters of a run as numbers."""
    learn = Hyperparameters(**run.hyperparameters)
    epochs = learn.num_train_epochs
    if epochs is None:
        epochs = run.total_steps * learn.rows_per_step / max(1, run.dataset_version.splits.get("train", 0))
    multiplier = learn.learning_rate / learning_rate_of(run.base_model)
    return {
        "n_epochs": whole(round(epochs, 2)),
        "batch_size": learn.rows_per_step,
        "learning_rate_multiplier": whole(float(f"{multiplier:.3g}")),
        "r": learn.r,
        "lora_alpha": learn.lora_alpha,
        "lora_dropout": learn.lora_dropout,
        "preset": run.target_module_config.slug or run.target_module_config.name,
    }


def whole(number: float) -> float | int:
    """Return a whole number without a fraction, as OpenAI writes it."""
    return int(number) if number == int(number) else number
