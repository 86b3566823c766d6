"""The plan of a study: limits, budgets and checks. Creates no rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.catalog.metrics import LOSS, NO_ANSWERS, REGEX, STUDY_METRICS
from dashboard.models.catalog.target_module_config import TargetModuleConfig
from workers.contract.errors import SpecError
from workers.contract.hyperparameters import LIMITS, Hyperparameters, hyperparameters_from
from workers.forecasting.adapter_size import adapter_params
from workers.statistics.regex_metric import check_pattern
from workers.target_modules.presets import PRESETS, resolve

DEFAULT_SEEDS = (1, 2, 3, 4, 5)
DEFAULT_MARGIN = 0.03
MOST_ARMS, MOST_SEEDS, MOST_RATES = 12, 20, 8
TEST_ROWS, MOST_TEST_ROWS = 1_000, 10_000
LEAST_HOURS, MOST_HOURS = 0.01, 10_000
# Equal budgets are anchored on all linear layers at this rank: anchored on the smallest set, large sets would
# need ranks below 2, which cannot be rounded fairly.
ANCHOR_RANK = 8
BUDGET_TOLERANCE = 0.05
# Parameters of the base from which the lower learning rates are tried, and the rates of both classes.
LARGE_MODEL = 1e9
RATES_OF_LARGE, RATES_OF_SMALL = (5e-5, 1e-4, 2e-4, 4e-4), (2.5e-4, 5e-4, 1e-3, 2e-3)


@dataclass(frozen=True)
class ArmPlan:
    """One arm before it has a row."""

    name: str
    config: TargetModuleConfig
    hyperparameters: Hyperparameters


def suggested_rates(parameters: int | None) -> tuple[float, ...]:
    """Return four log-spaced rates around the usual one for a base model of that size."""
    return RATES_OF_LARGE if (parameters or 0) >= LARGE_MODEL else RATES_OF_SMALL


def halvings(rates: int) -> int:
    """Return the number of rungs: each keeps the better half until one rate is left."""
    return math.ceil(math.log2(rates)) if rates else 0


def count_jobs(arms: int, alone: int, seeds: int, rates: int) -> int:
    """Return the number of training jobs, where `alone` of the arms need one for each of their runs."""
    shared = 1 if arms > alone else 0
    rungs: list[int] = [math.ceil(rates / 2**rung) for rung in range(halvings(rates))]
    return seeds * (shared + alone) + len(rungs) * shared + alone * sum(rungs)


def passes(seeds: int, rates: int) -> float:
    """Return how many times each arm is trained: once per seed, plus the parts of the search."""
    rungs = halvings(rates)
    shares = [math.ceil(rates / 2**rung) / 2 ** (rungs - rung) for rung in range(rungs)]
    return seeds + float(sum(shares))


def with_changes(learn: Hyperparameters, changes: dict[str, Any]) -> Hyperparameters:
    """Return the settings with some changed; alpha stays twice the rank if it was. Raises SpecError."""
    own = dataclasses.asdict(learn)
    if learn.lora_alpha == 2 * learn.r:
        del own["lora_alpha"]
    changed = {name: value for name, value in changes.items() if value is not None}
    # The length is either steps or epochs.
    if {"max_steps", "num_train_epochs"} & changed.keys():
        own |= {"max_steps": None, "num_train_epochs": None}
    return hyperparameters_from(own | changed)


def resolve_reference(arms: Sequence[ArmPlan], name: str) -> str:
    """Return the reference arm's name: `name`, or else the arm `quality`. Raises SpecError."""
    names = [arm.name for arm in arms]
    if not name:
        if "quality" in names:
            return "quality"
        raise SpecError("reference", _("Choose the arm that the others are compared with: `reference`."))
    if name not in names:
        raise SpecError(
            "reference",
            _("`%(name)s` is no arm of this study. Choose one of: %(names)s.")
            % {"name": name[:100], "names": ", ".join(names)},
        )
    return name


def check_plan(
    arms: Sequence[ArmPlan], seeds: Sequence[int], rates: Sequence[float], margin: float, metric: str
) -> None:
    """Raise SpecError for arms, seeds, rates, a margin or a metric that cannot be compared."""
    if not 2 <= len(arms) <= MOST_ARMS:
        raise SpecError("arms", _("A study compares 2 to %(most)d arms.") % {"most": MOST_ARMS})
    check_names(arms)
    first = arms[0].hyperparameters
    for arm in arms:
        learn = arm.hyperparameters
        # Otherwise a difference could come from the amount of training.
        shared = [
            (settings.rows_per_step, settings.max_length, settings.max_steps, settings.num_train_epochs)
            for settings in (first, learn)
        ]
        if shared[0] != shared[1]:
            raise SpecError(
                "arms",
                _(
                    "Arm `%(name)s` differs from the first in length, batch or maximum length. "
                    "These must be equal."
                )
                % {"name": arm.name[:100]},
            )
        if learn.load_in_4bit != first.load_in_4bit:
            say = _("The arms of a study share one base model: set `load_in_4bit` in all of them or in none.")
            raise SpecError("arms", say)
    check_seeds(seeds)
    if len(rates) > MOST_RATES or len(set(rates)) < len(rates):
        raise SpecError(
            "learning_rates", _("Name up to %(most)d different learning rates.") % {"most": MOST_RATES}
        )
    for rate in rates:
        dataclasses.replace(first, learning_rate=rate)  # raises where the rate is out of range
    if not math.isfinite(margin) or margin < 0:
        raise SpecError("margin", _("`margin` must not be negative."))
    if metric and metric not in STUDY_METRICS:
        names = ", ".join(STUDY_METRICS)
        raise SpecError("metric", _("`metric` must be one of: %(names)s.") % {"names": names})


def check_names(arms: Sequence[ArmPlan]) -> None:
    """Raise SpecError for two arms of one name, and for the reserved name `base`."""
    names = [arm.name for arm in arms]
    if repeated := next((name for name in names if names.count(name) > 1), ""):
        raise SpecError(
            "arms", _("Two arms are called `%(name)s`. Give each a name.") % {"name": repeated[:100]}
        )
    if "base" in names:
        raise SpecError("arms", _("`base` is the name of the untrained model. Choose another name."))


def check_metric(metric: str, pattern: str, version: DatasetVersion) -> None:
    """Raise SpecError for a metric that cannot be measured on this data."""
    if metric == REGEX:
        check_pattern(pattern)
    elif pattern:
        raise SpecError("pattern", _("`pattern` is only used by the metric `regex`. Leave it out."))
    if version.report.get("answers") == NO_ANSWERS and metric != LOSS:
        raise SpecError(
            "metric",
            _("The rows of %(dataset)s are plain text without answers, so only `loss` can be measured.")
            % {"dataset": version},
        )


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise SpecError for too many or repeated seeds."""
    if not 1 <= len(seeds) <= MOST_SEEDS or len(set(seeds)) < len(seeds):
        raise SpecError("seeds", _("Name 1 to %(most)d different seeds.") % {"most": MOST_SEEDS})
    for seed in seeds:
        Hyperparameters(seed=seed)


def check_hours(hours: float | None) -> None:
    """Raise SpecError for a time that is out of range."""
    if hours is not None and not LEAST_HOURS <= hours <= MOST_HOURS:
        raise SpecError(
            "max_hours",
            _("`max_hours` must be from %(least)s to %(most)d.") % {"least": LEAST_HOURS, "most": MOST_HOURS},
        )


def requires_dedicated_base(arm: ArmPlan, base_model: BaseModel) -> bool:
    """Return whether an arm cannot share a loaded base model with others. Raises TargetError.

    PEFT keeps one set of adapted experts for each model, and DoRA reads the base's weights in each layer.
    Of a run that is frozen, `TrainingRun.requires_dedicated_base` says the same.
    """
    return arm.hyperparameters.use_dora or arm.config.resolve(base_model).has_experts


def with_equal_parameters(arms: Sequence[ArmPlan], base_model: BaseModel) -> list[ArmPlan]:
    """Return the arms with ranks that give each about as many parameters as all linear layers at rank 8.

    r is the rank that comes nearest to B, which all linear layers have at rank 8; it is looked for, because
    groups with ranks of their own do not grow evenly. An arm more than 5 % off B is refused, because the
    comparison would not be one of equal budgets.
    """
    census = base_model.load_census()
    whole = adapter_params(resolve(PRESETS["quality"].roles, census).matched, ANCHOR_RANK)
    low, high = (int(limit) for limit in LIMITS["r"])
    planned = []
    for arm in arms:
        matched = arm.config.resolve(base_model).with_dora(arm.hyperparameters).matched
        sizes = {r: adapter_params(matched, r) for r in range(low, high + 1)}
        r = min(sizes, key=lambda rank: abs(sizes[rank] - whole))
        if abs(sizes[r] - whole) > BUDGET_TOLERANCE * whole:
            raise SpecError(
                "budget",
                _(
                    "No rank gives arm `%(name)s` the same number of parameters within 5 %%. "
                    "Choose equal rank."
                )
                % {"name": arm.name[:100]},
            )
        learn = dataclasses.replace(arm.hyperparameters, r=r, lora_alpha=2 * r)
        planned.append(dataclasses.replace(arm, hyperparameters=learn))
    return planned


def with_rate(arms: Sequence[ArmPlan], rate: float) -> list[ArmPlan]:
    return [
        dataclasses.replace(arm, hyperparameters=dataclasses.replace(arm.hyperparameters, learning_rate=rate))
        for arm in arms
    ]
