"""The costs of a planned study, and the differences that its test rows can show. Starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.utils import timezone
from django.utils.translation import gettext as _

from dashboard.models.accounts.project import Project
from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.catalog.metrics import is_lower_better
from dashboard.models.evaluations.evaluation import EvaluationItem
from dashboard.models.jobs.compute_budget import Charge
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.queue_forecast import StartEstimate, estimate_next_start
from dashboard.models.studies.forecast import PlanForecast, plan_forecast
from dashboard.models.studies.plan import MOST_TEST_ROWS, ArmPlan
from dashboard.models.training.forecast import Forecast
from workers.contract.hyperparameters import Hyperparameters
from workers.statistics import power

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User


@dataclass(frozen=True)
class ArmCost:
    """An arm with its own rank, and the forecast of one of its runs."""

    plan: ArmPlan
    forecast: Forecast


@dataclass(frozen=True)
class Costs:
    """The costs of the whole study on the device that suits it."""

    arms: tuple[ArmCost, ...]
    runs: int
    plan: PlanForecast
    disk_bytes: int
    device: str
    start: StartEstimate | None
    charge: Charge
    train_rows: int

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
    def finishes_at(self) -> datetime:
        """Return the end of the last evaluation if no other job comes between."""
        waits = self.start.seconds if self.start else 0.0
        return timezone.now() + timedelta(seconds=waits + self.plan.seconds["expected"])

    @property
    def too_large(self) -> list[str]:
        return [arm.plan.name for arm in self.arms if arm.forecast.main.fit == "too_large"]


@dataclass(frozen=True)
class Power:
    """The smallest difference that the test rows can show four times out of five, against the margin.

    Rows of one group may say the same thing, so a group counts as one: the cautious end of what is possible.
    """

    rows: int
    rows_there: int
    groups_there: int
    comparisons: int
    seeds: int
    variance: float
    is_assumed: bool
    margin: float
    unit: str

    @property
    def design(self) -> power.Design:
        return power.Design(
            arms=self.comparisons + 1,
            seeds=self.seeds,
            items=self.rows,
            groups=self.groups,
            item_variance=self.variance,
        )

    @property
    def difference(self) -> float:
        """Return the difference in the metric's unit."""
        return self.design.detectable_difference

    @property
    def groups(self) -> int:
        """Return about how many groups these rows come from."""
        return max(1, round(self.rows * self.groups_there / self.rows_there))

    @property
    def is_too_coarse(self) -> bool:
        """Return whether a difference of the margin would probably stay undetected."""
        return self.difference > self.margin

    @property
    def rows_needed(self) -> int | None:
        """Return the test rows that would show a difference of the margin; None for a margin of 0."""
        if not self.margin:
            return None
        return self.design.items_for(self.margin)

    @property
    def rows_are_there(self) -> bool:
        """Return whether the dataset has them, and a study may use that many."""
        return self.rows_needed is not None and self.rows_needed <= min(self.rows_there, MOST_TEST_ROWS)

    @property
    def rows_are_too_many(self) -> bool:
        """Return whether no study may use that many."""
        return (self.rows_needed or 0) > MOST_TEST_ROWS

    def words(self, value: float) -> str:
        if self.unit == "nats":
            return _("%(value)s nats") % {"value": f"{value:.3f}"}
        return _("%(value)s points") % {"value": f"{100 * value:.1f}".removesuffix(".0")}

    @property
    def difference_words(self) -> str:
        return self.words(self.difference)

    @property
    def margin_words(self) -> str:
        return self.words(self.margin)


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
) -> Costs:
    """Return time, disk and parameters: the arms of a seed train in one job, one seed after the other."""
    plan = plan_forecast(
        base_model,
        version,
        arms,
        seeds=seeds,
        rates=rates,
        test_rows=test_rows,
    )
    kept = sum(arm.adapter_bytes for arm in plan.arms)
    working = sum(arm.disk_bytes - arm.adapter_bytes for arm in plan.arms)
    return Costs(
        arms=tuple(ArmCost(arm, forecast) for arm, forecast in zip(arms, plan.arms, strict=True)),
        runs=len(arms) * seeds,
        plan=plan,
        disk_bytes=kept * seeds + working * max(1, rates),
        device=plan.arms[0].main.device,
        start=estimate_next_start(Job.Queue.GPU, project),
        # Each run is charged for its own loading, even if runs share a job.
        charge=Charge.for_work(project, plan.charge, by),
        train_rows=int(version.splits.get("train", 0)) if version else 0,
    )


def power_of(
    version: DatasetVersion, metric: str, arms: int, *, seeds: int, test_rows: int, margin: float
) -> Power | None:
    """Return what the test rows can show; None for a loss whose variance is not known yet."""
    there = int(version.splits.get("test", 0))
    rows = min(there, test_rows)
    seen = EvaluationItem.objects.variance_of_difference(version, metric)
    if not rows or (seen is None and is_lower_better(metric)):
        return None
    return Power(
        rows=rows,
        rows_there=there,
        groups_there=int((version.report.get("groups") or {}).get("test") or there),
        comparisons=arms - 1,
        seeds=seeds,
        variance=power.ASSUMED_DISAGREEMENT if seen is None else seen,
        is_assumed=seen is None,
        margin=margin,
        unit="nats" if is_lower_better(metric) else "points",
    )
