"""The costs of a planned study. Starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dashboard.models.accounts.project import Project
from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.jobs.compute_budget import Charge
from dashboard.models.jobs.compute_use import HOUR
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.queue_forecast import StartEstimate, estimate_next_start
from dashboard.models.jobs.worker_node import WorkerNode
from dashboard.models.studies.forecast import PlanForecast, StudyForecaster
from dashboard.models.studies.plan import MOST_TEST_ROWS, ArmPlan
from dashboard.models.training.forecast import Forecast, RunForecaster
from workers.contract.hyperparameters import Hyperparameters
from workers.statistics.looks import look_sizes

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User


# Seeds that the plan offers to add.
MORE_SEEDS = 2


@dataclass(frozen=True)
class ArmCost:
    """An arm with its own rank, and the forecast of one of its runs."""

    plan: ArmPlan
    forecast: Forecast


@dataclass(frozen=True)
class Costs:
    """The costs of the whole study on the device that suits it.

    `workers`: trainings at once. `first_look`: time until the first look, None if that is the end.
    `seeds_within`: seeds that start in the hours allowed. `seconds_of_more_seeds`, `seconds_of_more_rows`:
    the computing time of 2 more seeds, and that of twice the test rows as far as the dataset has them.
    """

    arms: tuple[ArmCost, ...]
    runs: int
    plan: PlanForecast
    disk_bytes: int
    device: str
    start: StartEstimate | None
    workers: int
    charge: Charge
    train_rows: int
    first_look: PlanForecast | None
    seeds_within: int
    seconds_of_more_seeds: float
    seconds_of_more_rows: float

    @property
    def learn(self) -> Hyperparameters:
        """Return the length and batch that all arms share."""
        return self.arms[0].plan.hyperparameters

    @property
    def all_alone(self) -> bool:
        """Return whether every run trains in a job of its own."""
        return len(self.plan.alone) == len(self.arms)

    @property
    def steps(self) -> int:
        return self.learn.total_steps(self.train_rows) if self.train_rows else 0

    @property
    def rows_read(self) -> int:
        """Return the training rows that each run reads, repeats included."""
        return self.steps * self.learn.rows_per_step

    @property
    def passes(self) -> float:
        """Return the number of passes of each run over the training rows."""
        return self.rows_read / self.train_rows if self.train_rows else 0.0

    @property
    def largest_share(self) -> float:
        """Return the ratio of the largest to the smallest arm's parameters."""
        sizes = [arm.forecast.trainable_parameters for arm in self.arms]
        return max(sizes) / min(sizes) if min(sizes) else 1.0

    @property
    def seconds_to_end(self) -> float:
        """Return the seconds to the end of the last evaluation when the workers share the work alone."""
        waits = self.start.seconds if self.start else 0.0
        return waits + self.plan.seconds["expected"] / self.workers

    @property
    def too_large(self) -> list[str]:
        return [arm.plan.name for arm in self.arms if arm.forecast.main.fit == "too_large"]


def plan_costs(
    project: Project,
    by: User | None,
    base_model: BaseModel,
    version: DatasetVersion | None,
    arms: Sequence[ArmPlan],
    *,
    seeds: int,
    rates: int,
    test_rows: int,
    max_hours: float | None = None,
    metric: str = "",
    pattern: str = "",
    runs: RunForecaster | None = None,
) -> Costs:
    """Return time, disk and parameters: the workers share the arms of a seed."""
    forecaster = StudyForecaster.load(base_model, version, arms, metric, pattern, runs=runs)
    plan = forecaster.plan(seeds=seeds, rates=rates, test_rows=test_rows)
    first = look_sizes(seeds)[0]
    within = (
        forecaster.seeds_within(max_hours, seeds, test_rows=test_rows, rates=rates) if max_hours else seeds
    )
    charge = min(plan.charge, max_hours * HOUR) if max_hours else plan.charge
    more_seeds = forecaster.plan(seeds=MORE_SEEDS, test_rows=test_rows, with_base=False)
    more_rows = forecaster.plan(seeds=seeds, test_rows=min(2 * test_rows, MOST_TEST_ROWS))
    kept = sum(arm.adapter_bytes for arm in plan.arms)
    working = sum(arm.disk_bytes - arm.adapter_bytes for arm in plan.arms)
    return Costs(
        arms=tuple(ArmCost(arm, forecast) for arm, forecast in zip(arms, plan.arms, strict=True)),
        runs=len(arms) * seeds,
        plan=plan,
        disk_bytes=kept * seeds + working * max(1, rates),
        device=plan.arms[0].main.device,
        start=estimate_next_start(Job.Queue.GPU, project),
        workers=min(max(1, WorkerNode.objects.count_slots(Job.Queue.GPU)), len(arms)),
        # Each run is charged for its own loading, even if runs share a job.
        charge=Charge.for_work(project, charge, by),
        train_rows=int(version.splits.get("train", 0)) if version else 0,
        first_look=forecaster.plan(seeds=first, rates=rates, test_rows=test_rows) if first < seeds else None,
        seeds_within=within,
        seconds_of_more_seeds=more_seeds.seconds["expected"],
        seconds_of_more_rows=more_rows.scoring["expected"] - plan.scoring["expected"],
    )
