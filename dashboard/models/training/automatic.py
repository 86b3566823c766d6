"""The settings of a run as chosen, and the numbers that automatic ones become before the run is frozen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.catalog.target_module_config import TargetModuleConfig
from dashboard.models.training.forecast import RunForecaster
from workers.contract.errors import SpecError
from workers.contract.hyperparameters import (
    AUTOMATIC_LENGTHS,
    DEFAULT_LENGTH,
    AutomaticLength,
    Hyperparameters,
    hyperparameters_from,
)
from workers.forecasting.automatic import automatic_learning_rate, automatic_steps
from workers.target_modules.resolution import Resolution

OWN_LENGTHS = ("max_steps", "num_train_epochs")


def learning_rate_of(base_model: BaseModel) -> float:
    """Return the automatic learning rate of a base model."""
    census = base_model.load_census()
    return automatic_learning_rate(census.hidden_size, census.model_type)


@dataclass(frozen=True)
class ChosenSettings:
    """Valid settings, of which learning rate and length may be automatic.

    `length` is None if steps or epochs were given.
    """

    values: dict[str, Any]
    length: AutomaticLength | None

    @classmethod
    def of(cls, values: dict[str, Any]) -> ChosenSettings:
        """Return the settings of a form or request. Raises SpecError for a wrong name or value."""
        given = {name: value for name, value in values.items() if value is not None}
        length = given.pop("length", None)
        own = [name for name in OWN_LENGTHS if name in given]
        if length and own:
            text = _("Give `length` or `%(name)s`, not both.") % {"name": own[0]}
            raise SpecError("length", text)
        hyperparameters_from(given)
        return cls(given, None if own else AUTOMATIC_LENGTHS[length or DEFAULT_LENGTH])

    def resolve(
        self, forecaster: RunForecaster | None, configs: Iterable[TargetModuleConfig] = ()
    ) -> Hyperparameters:
        """Return the settings as numbers, with the length that the slowest of the configs allows.

        Without a base model or a dataset nothing can start, and defaults stand in. May raise TargetError.
        """
        values = dict(self.values)
        if forecaster:
            values.setdefault("learning_rate", learning_rate_of(forecaster.base_model))
        if self.length is None:
            return hyperparameters_from(values)
        learn = hyperparameters_from(values | {"num_train_epochs": self.length.epochs})
        if forecaster is None or forecaster.version is None:
            return learn
        resolutions = [config.resolve(forecaster.base_model) for config in configs]
        usable = [resolution for resolution in resolutions if not resolution.refusal]
        if not usable:
            return learn
        steps = min(_steps(self.length, forecaster, resolution, learn) for resolution in usable)
        return dataclasses.replace(learn, max_steps=steps, num_train_epochs=None)


def _steps(
    length: AutomaticLength, forecaster: RunForecaster, resolution: Resolution, learn: Hyperparameters
) -> int:
    def seconds(steps: int) -> float:
        run = dataclasses.replace(learn, max_steps=steps, num_train_epochs=None)
        return forecaster.forecast_best_device(resolution, run).seconds["expected"]

    rows = forecaster.truncated_rows(learn).rows
    return automatic_steps(length, math.ceil(rows / learn.rows_per_step), seconds)


def with_equal_length(chosen: list[ChosenSettings], settings: list[Hyperparameters]) -> list[Hyperparameters]:
    """Return the settings of a study's arms, in which equal automatic lengths have equal steps."""
    fewest: dict[str, int] = {}
    for one, learn in zip(chosen, settings, strict=True):
        if one.length and learn.max_steps:
            fewest[one.length.name] = min(learn.max_steps, fewest.get(one.length.name, learn.max_steps))
    return [
        dataclasses.replace(learn, max_steps=fewest[one.length.name])
        if one.length and learn.max_steps
        else learn
        for one, learn in zip(chosen, settings, strict=True)
    ]
