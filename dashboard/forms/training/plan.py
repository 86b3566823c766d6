"""The plan of the fine-tune form: preset cards, forecast, changed settings, and the choices that are missing.

Computed from the census and the frozen rows alone; starts nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from django.utils.translation import gettext as _

from dashboard.forms.training.hyperparameters import DEFAULTS, differences
from dashboard.forms.training.suggestions import Edit, find_smaller_preset, suggest_edits
from dashboard.forms.training.training_runs import TrainingRunForm
from dashboard.models import BaseModel, Calibration, DatasetVersion, TargetModuleConfig
from dashboard.models.jobs.compute_budget import Charge
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.queue_forecast import StartEstimate, estimate_next_start
from dashboard.models.training.calibration import ForecastErrors, MeasuredCost
from dashboard.models.training.forecast import DeviceForecast, Forecast, RunForecaster
from workers.contract.errors import SpecError, TargetError
from workers.contract.hyperparameters import Hyperparameters
from workers.forecasting.adapter_size import adapter_bytes, adapter_params
from workers.target_modules.presets import RECOMMENDED
from workers.target_modules.resolution import Resolution


@dataclass(frozen=True)
class PresetCard:
    """One choice of target modules, resolved on one base model at one rank."""

    config: TargetModuleConfig
    resolution: Resolution
    trainable_parameters: int
    adapter_bytes: int
    share: float
    shares: tuple[str, ...] = ()  # rank of one expert
    forecast: DeviceForecast | None = None  # memory and time with the other fields of the form
    cost: MeasuredCost | None = None  # measured on the project's own runs
    measured: str = ""  # outcomes in the project's studies

    @property
    def is_recommended(self) -> bool:
        return self.config.slug == RECOMMENDED


def preset_cards(
    configs: Sequence[TargetModuleConfig], base_model: BaseModel, r: int = DEFAULTS.r
) -> list[PresetCard]:
    """Return a card for each choice. A census of another version refuses all of them."""
    return [_card(config, base_model, r) for config in configs]


def _card(config: TargetModuleConfig, base_model: BaseModel, r: int) -> PresetCard:
    try:
        resolution = config.resolve(base_model)
    except (SpecError, TargetError) as error:
        resolution = Resolution(refusal=error.message)
    parameters = adapter_params(resolution.matched, r)
    return PresetCard(
        config=config,
        resolution=resolution,
        trainable_parameters=parameters,
        adapter_bytes=adapter_bytes(resolution.matched, r),
        share=parameters / base_model.parameters if base_model.parameters else 0.0,
        shares=resolution.expert_shares(r),
    )


@dataclass(frozen=True)
class ChosenNumbers:
    """The numbers that length and learning rate became. `seconds`: of one run."""

    learning_rate: float
    steps: int
    passes: float
    seconds: float

    @classmethod
    def of(cls, learn: Hyperparameters, train_rows: int, seconds: float) -> ChosenNumbers | None:
        """Return the numbers; None before a dataset is chosen."""
        if not train_rows:
            return None
        steps = learn.total_steps(train_rows)
        return cls(learn.learning_rate, steps, steps * learn.rows_per_step / train_rows, seconds)


@dataclass(frozen=True)
class RunPlan:
    """The run that the form would start, and the choices that are missing."""

    hyperparameters: Hyperparameters
    version: DatasetVersion | None
    base_model: BaseModel | None
    card: PresetCard | None
    differences: tuple[tuple[str, str, str], ...]
    forecast: Forecast | None = None
    edits: tuple[Edit, ...] = ()
    forecaster: RunForecaster | None = None
    errors: ForecastErrors | None = None
    start: StartEstimate | None = None
    charge: Charge | None = None
    confirmed: str = ""  # key of the accepted warnings

    @property
    def total_steps(self) -> int | None:
        """Return the steps of the run; None while they depend on a dataset that is not chosen."""
        if self.version is None and self.hyperparameters.max_steps is None:
            return None
        return self.hyperparameters.total_steps(self.train_rows)

    @property
    def train_rows(self) -> int:
        return int(self.version.splits.get("train", 0)) if self.version else 0

    @property
    def passes(self) -> float | None:
        if not self.train_rows or self.total_steps is None:
            return None
        return self.total_steps * self.hyperparameters.rows_per_step / self.train_rows

    @property
    def chosen(self) -> ChosenNumbers | None:
        """Return the learning rate and the length in numbers; None before the choices that they depend on."""
        if self.forecast is None:
            return None
        seconds = self.forecast.main.seconds["expected"]
        return ChosenNumbers.of(self.hyperparameters, self.train_rows, seconds)

    @property
    def missing(self) -> str:
        """Return the choice that the primary button asks for; "" when the run can start."""
        if self.base_model is None:
            return _("Choose a base model")
        if self.version is None:
            return _("Choose a dataset")
        if self.card is None or self.card.resolution.refusal:
            return _("Choose what to train")
        return ""


def plan_run(form: TrainingRunForm) -> RunPlan:
    """Return the plan of a form whose fields have been cleaned, valid or not."""
    values = form.cleaned_data
    try:
        hyperparameters = form.hyperparameters()
    except SpecError:
        hyperparameters = DEFAULTS
    base_model, config = values.get("base_model"), values.get("target_module_config")
    plan = RunPlan(
        hyperparameters=hyperparameters,
        version=values.get("dataset_version"),
        base_model=base_model,
        card=_card(config, base_model, hyperparameters.r) if base_model and config else None,
        differences=tuple(differences(hyperparameters, base_model)),
        confirmed=values.get("confirmed") or "",
        forecaster=form.forecaster,
    )
    return _with_forecast(form, plan)


def cards_with_forecast(form: TrainingRunForm, plan: RunPlan) -> list[PresetCard]:
    """Return a card with its forecast for every choice on the plan's base model."""
    if plan.base_model is None or plan.forecaster is None:
        return []
    offered = list(form.offered)
    if plan.card and plan.card.config not in offered:
        offered.append(plan.card.config)
    hyperparameters, forecaster = plan.hyperparameters, plan.forecaster
    return [
        card
        if card.resolution.refusal
        else dataclasses.replace(
            card, forecast=forecaster.forecast_best_device(card.resolution, hyperparameters)
        )
        for card in preset_cards(offered, plan.base_model, hyperparameters.r)
    ]


def _with_forecast(form: TrainingRunForm, plan: RunPlan) -> RunPlan:
    """Return the plan with memory, time and start if base model and target modules are chosen."""
    forecaster = plan.forecaster
    if plan.base_model is None or forecaster is None or plan.card is None or plan.card.resolution.refusal:
        return plan
    resolution, hyperparameters = plan.card.resolution, plan.hyperparameters
    start = estimate_next_start(Job.Queue.GPU, form.project)
    smallest = find_smaller_preset(form.offered, plan.card.config, plan.base_model)
    forecast = forecaster.forecast(resolution, hyperparameters, start.at if start else None)
    return dataclasses.replace(
        plan,
        forecast=forecast,
        edits=tuple(suggest_edits(forecaster, resolution, hyperparameters, smallest)),
        errors=Calibration.objects.errors(),
        start=start,
        charge=Charge.for_work(form.project, forecast.main.seconds["expected"], form.by),
    )
