"""Time of a study: training and scoring, on the device that suits it.

The form, the start and later additions use the same forecast. Writes no rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.evaluations.evaluation import Evaluation, adapter_evaluation, evaluation_spec
from dashboard.models.jobs.compute_use import HOUR
from dashboard.models.jobs.job_state import TERMINAL
from dashboard.models.studies.looks import open_arms
from dashboard.models.studies.plan import ArmPlan, count_jobs, halvings, passes, requires_dedicated_base
from dashboard.models.training import evaluation_cost
from dashboard.models.training.forecast import Forecast, Range, RunForecaster
from workers.forecasting.training_cost import device_kind, expected_seconds, load_seconds

if TYPE_CHECKING:
    from dashboard.models.studies.study import Study
    from dashboard.models.studies.study_arm import StudyArm

ENDS = ("low", "expected", "high")


@dataclass(frozen=True)
class PlanForecast:
    """Seconds of a study's plan with their range. `promised` counts loading the base model for every run."""

    arms: tuple[Forecast, ...]
    alone: tuple[str, ...]  # arms each of whose runs trains in a job of its own
    trials: int  # short runs that only look for learning rates
    promised: float
    saved: float
    training: Range
    scoring: Range

    @property
    def charge(self) -> float:
        """Return the seconds that the compute budget is charged: `promised` and the scoring."""
        return self.promised + self.scoring["expected"]

    @property
    def seconds(self) -> Range:
        """Return the seconds of training and scoring."""
        return {name: self.training[name] + self.scoring[name] for name in ENDS}

    def added_to(self, kept: dict[str, Range], share: float = 1.0) -> dict[str, Range]:
        """Return a share of the study's stored forecast plus this one."""
        return {
            part: {name: value + share * kept.get(part, {}).get(name, 0.0) for name, value in span.items()}
            for part, span in self.to_dict().items()
        }

    def to_dict(self) -> dict[str, Range]:
        return {"training": self.training, "scoring": self.scoring}


@dataclass(frozen=True)
class StudyForecaster:
    """Forecasts of a study's arms for any number of seeds, learning rates and test rows."""

    runs: RunForecaster
    arms: tuple[ArmPlan, ...]
    forecasts: tuple[Forecast, ...]
    alone: tuple[str, ...]
    metric: str = ""
    pattern: str = ""
    # Test rows -> whether the base model has kept scores on them: a plan asks once per number of seeds.
    kept: dict[int, bool] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        base_model: BaseModel,
        version: DatasetVersion | None,
        arms: Sequence[ArmPlan],
        metric: str = "",
        pattern: str = "",
        *,
        runs: RunForecaster | None = None,
    ) -> StudyForecaster:
        """Forecast one run of each arm; `runs` if it is loaded already. Raises TargetError."""
        runs = runs or RunForecaster.load(base_model, version)
        return cls(
            runs,
            tuple(arms),
            tuple(runs.forecast(arm.config.resolve(base_model), arm.hyperparameters) for arm in arms),
            tuple(arm.name for arm in arms if requires_dedicated_base(arm, base_model)),
            metric,
            pattern,
        )

    def plan(self, *, seeds: int, test_rows: int, rates: int = 0, with_base: bool = True) -> PlanForecast:
        """Return the time of all arms, one after the other, less the loading that they share.

        What a GPU gains by computing arms at once is not counted.
        """
        tried = rates if rates > 1 else 0
        arms = len(self.arms)
        trials = sum(math.ceil(tried / 2**rung) for rung in range(halvings(tried))) * arms
        jobs = count_jobs(arms, len(self.alone), seeds, tried)
        loading = load_seconds(self.runs.census.parameters, device_kind(self.runs.devices[0][0]))
        saved = loading * (arms * seeds + trials - jobs)
        whole = {
            name: passes(seeds, tried) * sum(forecast.main.seconds[name] for forecast in self.forecasts)
            for name in ENDS
        }
        return PlanForecast(
            arms=self.forecasts,
            alone=self.alone,
            trials=trials,
            promised=whole["expected"],
            saved=saved,
            training={name: max(1.0, value - saved) for name, value in whole.items()},
            scoring=self._scoring(seeds, test_rows, with_base=with_base),
        )

    def seeds_within(self, hours: float, most: int, *, test_rows: int, rates: int) -> int:
        """Return the number of seeds that start within so many hours; the first one always does."""
        for seeds in range(1, most):
            if self.plan(seeds=seeds, test_rows=test_rows, rates=rates).seconds["expected"] >= hours * HOUR:
                return seeds
        return most

    def _scoring(self, seeds: int, test_rows: int, *, with_base: bool) -> Range:
        """Return the time of one job per seed and per arm with a dedicated base.

        The base model is scored once, and not at all if its scores are kept.
        """
        version, apart = self.runs.version, len(self.alone)
        available = int(version.splits.get("test", 0)) if version else 0
        if not available:
            return dict.fromkeys(ENDS, 0.0)
        rows = evaluation_cost.scoring_rows(
            self.runs, min(available, test_rows), self.arms[0].hyperparameters.max_length
        )
        shared = len(self.arms) - apart
        each = [shared] * bool(shared) + [1] * apart
        with_base = with_base and not self._has_base_scores(test_rows)
        jobs = [(adapters, with_base and not place) for place, adapters in enumerate(each * seeds)]
        return evaluation_cost.forecast_scoring(self.runs, rows, jobs)

    def _has_base_scores(self, test_rows: int) -> bool:
        learn, version = self.arms[0].hyperparameters, self.runs.version
        if version is None or test_rows in self.kept:
            return self.kept.get(test_rows, False)
        spec = evaluation_spec(
            self.runs.base_model,
            version,
            load_in_4bit=learn.load_in_4bit,
            max_length=learn.max_length,
            max_rows=test_rows,
            metric=self.metric,
            pattern=self.pattern,
        )
        self.kept[test_rows] = bool(Evaluation.objects.kept_base(self.runs.base_model, version, spec))
        return self.kept[test_rows]


def plan_forecast(
    base_model: BaseModel,
    version: DatasetVersion | None,
    arms: Sequence[ArmPlan],
    *,
    seeds: int,
    test_rows: int,
    rates: int = 0,
    with_base: bool = True,
    metric: str = "",
    pattern: str = "",
) -> PlanForecast:
    """Return the forecast of one plan. Raises TargetError."""
    forecaster = StudyForecaster.load(base_model, version, arms, metric, pattern)
    return forecaster.plan(seeds=seeds, test_rows=test_rows, rates=rates, with_base=with_base)


def seconds_queued(study: Study) -> float:
    """Return the expected seconds of all its runs, ended ones included."""
    return sum(expected_seconds(run.forecast) for arm in study.arms_with_runs() for run in arm.runs.all())


def remaining_training_seconds(study: Study) -> float:
    """Return the most seconds that runs yet to be queued take. Raises SpecError or TargetError."""
    return sum(_to_come(study, arm) for arm in study.arms_with_runs()) if open_arms(study) else 0.0


def _to_come(study: Study, arm: StudyArm) -> float:
    seeds = arm.final_runs()
    to_come = len(study.seeds) - len(seeds)
    if arm.is_lost or arm.verdict or not to_come:
        return 0.0
    if seeds:
        return to_come * expected_seconds(seeds[-1].forecast)
    whole = plan_forecast(
        study.base_model,
        study.dataset_version,
        [arm.plan],
        seeds=len(study.seeds),
        rates=len(study.learning_rates),
        test_rows=study.test_rows,
    )
    return max(0.0, whole.promised - sum(expected_seconds(run.forecast) for run in arm.search_runs()))


def scoring_forecast(study: Study) -> float:
    """Return the expected seconds to score all its adapters."""
    return float(study.forecast.get("scoring", {}).get("expected", 0.0))


def remaining_scoring_seconds(study: Study) -> float:
    """Return the expected seconds to score the runs that have no scores yet."""
    seeds, arms = len(study.seeds), [(arm, arm.final_runs()) for arm in study.arms_with_runs()]
    evaluations = [adapter_evaluation(run) for _arm, runs in arms for run in runs]
    scored = sum(evaluation is not None and evaluation.state in TERMINAL for evaluation in evaluations)
    # An arm whose search failed queues no runs, and a decided one no further runs.
    to_come = sum(seeds - len(runs) for arm, runs in arms if runs and not arm.verdict)
    planned = seeds * len(arms)
    unscored = len(evaluations) - scored + to_come if evaluations else planned
    return scoring_forecast(study) * unscored / max(1, planned)
