"""The statistical power of a study's plan, and what more test rows or more seeds would make of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from dashboard.models.accounts.project import Project
from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.catalog.metrics import is_lower_better
from dashboard.models.evaluations.evaluation_item import EvaluationItem
from dashboard.models.studies.plan import MOST_SEEDS, MOST_TEST_ROWS
from dashboard.models.studies.planning.costs import MORE_SEEDS, Costs
from dashboard.models.studies.study import Study
from workers.statistics.looks import look_sizes
from workers.statistics.power import ASSUMED_DISAGREEMENT, ASSUMED_SEED_SPREAD, Design

# A larger plan helps if the difference that it detects is at least 5 % smaller.
HELPFUL_SHARE = 0.95


@dataclass(frozen=True)
class Power:
    """The differences that a design detects, and its chance of a verdict between equal arms.

    `seconds`: computing time beyond that of the plan; None before a base model is chosen.
    """

    design: Design
    margin: float
    unit: str
    seconds: float | None = 0.0

    @cached_property
    def difference(self) -> float:
        """Return the difference that it detects with 80 % probability, in the metric's unit."""
        return self.design.detectable_difference

    @property
    def difference_words(self) -> str:
        return self.words(self.difference)

    @property
    def margin_words(self) -> str:
        return self.words(self.margin)

    @property
    def chance_percent(self) -> int:
        """Return the chance that an arm equal to the reference is found as good within the margin."""
        return round(100 * self.design.chance_if_equal(self.margin))

    def words(self, value: float) -> str:
        if self.unit == "nats":
            return _("%(value)s nats") % {"value": f"{value:.3f}"}
        text = f"{100 * value:.1f}".removesuffix(".0")
        return ngettext("%(value)s point", "%(value)s points", 1 if text == "1" else 2) % {"value": text}


@dataclass(frozen=True)
class PlanPower:
    """The power of a plan, beside that with more test rows or more seeds; None where these are no option."""

    now: Power
    more_rows: Power | None
    more_seeds: Power | None
    rows_there: int
    is_disagreement_assumed: bool
    is_spread_assumed: bool
    within: Power | None = None  # with the seeds that start in the hours allowed

    @property
    def design(self) -> Design:
        return self.now.design

    @property
    def more_rows_help(self) -> bool:
        return self._helps(self.more_rows)

    @property
    def more_seeds_help(self) -> bool:
        return self._helps(self.more_seeds)

    def _helps(self, larger: Power | None) -> bool:
        return larger is not None and larger.difference <= HELPFUL_SHARE * self.now.difference

    @property
    def more_rows_are_there(self) -> bool:
        """Return whether the dataset has the rows of `more_rows`."""
        return self.more_rows is not None and self.more_rows.design.items <= self.rows_there

    @cached_property
    def rows_for_margin(self) -> int | None:
        """Return the test rows that would detect a difference of the margin; None if a study has too few."""
        return self.design.items_for(self.now.margin, MOST_TEST_ROWS)

    @property
    def rows_for_margin_are_there(self) -> bool:
        return self.rows_for_margin is not None and self.rows_for_margin <= self.rows_there

    @property
    def detects_margin(self) -> bool:
        return self.now.difference <= self.now.margin

    @property
    def most_rows(self) -> int:
        return MOST_TEST_ROWS

    @property
    def seed_spread_words(self) -> str:
        return self.now.words(self.design.seed_spread)

    @property
    def looks(self) -> str:
        """Return the numbers of seeds after which results are checked; "" if that is once, at the end."""
        *first, last = look_sizes(self.design.seeds)
        if not first:
            return ""
        return _("%(first)s and %(last)d") % {"first": ", ".join(map(str, first)), "last": last}


def power_of(
    project: Project,
    base_model: BaseModel | None,
    version: DatasetVersion,
    metric: str,
    *,
    arms: int,
    seeds: int,
    test_rows: int,
    margin: float,
    costs: Costs | None,
) -> PlanPower | None:
    """Return the power of a plan; None without test rows, and for a loss that no study has measured.

    Rows of one group may say the same thing, so a group counts as one: the cautious end of what is possible.
    """
    there = int(version.splits.get("test", 0))
    rows = min(there, test_rows)
    disagreement = EvaluationItem.objects.variance_of_difference(version, metric)
    spread = Study.objects.seed_spread(project, base_model, metric) if base_model else None
    is_loss = is_lower_better(metric)
    # The assumptions are shares of rows and points.
    if not rows or (is_loss and (disagreement is None or spread is None)):
        return None
    groups_there = int((version.report.get("groups") or {}).get("test") or there)

    def groups_of(count: int) -> int:
        return max(1, round(count * groups_there / there))

    design = Design(
        arms=arms,
        seeds=seeds,
        items=rows,
        groups=groups_of(rows),
        item_variance=ASSUMED_DISAGREEMENT if disagreement is None else disagreement,
        seed_spread=ASSUMED_SEED_SPREAD if spread is None else spread,
        is_share=not is_loss,
    )
    now = Power(design, margin, "nats" if is_loss else "points")
    twice = min(2 * rows, MOST_TEST_ROWS)
    larger_rows = min(twice, there) if there > rows else twice
    more_rows = dataclasses.replace(
        now,
        design=dataclasses.replace(design, items=larger_rows, groups=groups_of(larger_rows)),
        seconds=costs.seconds_of_more_rows if costs else None,
    )
    more_seeds = dataclasses.replace(
        now,
        design=dataclasses.replace(design, seeds=seeds + MORE_SEEDS),
        seconds=costs.seconds_of_more_seeds if costs else None,
    )
    return PlanPower(
        now=now,
        more_rows=more_rows if not design.is_indicative and larger_rows > rows else None,
        within=dataclasses.replace(
            now, design=dataclasses.replace(design, seeds=costs.seeds_within if costs else seeds)
        ),
        more_seeds=more_seeds if not design.is_indicative and seeds + MORE_SEEDS <= MOST_SEEDS else None,
        rows_there=there,
        is_disagreement_assumed=disagreement is None,
        is_spread_assumed=spread is None,
    )
