"""Filters and order of lists of runs, in SQL over stored columns. Pages and API share them."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import models
from django.utils.translation import gettext_lazy

from dashboard.models.accounts.project import Project
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.catalog.metrics import METRICS
from dashboard.models.evaluations.run_score import RunScore
from dashboard.models.training.metric_series import MetricSeries
from dashboard.models.training.training_run import TrainingRun, TrainingRunQuerySet

STATES = {
    "active": gettext_lazy("Waiting or working"),
    "finished": gettext_lazy("Finished"),
    "failed": gettext_lazy("Failed"),
    "cancelled": gettext_lazy("Stopped"),
}
NEWEST = "-created"
# Keys of `sort` that are columns -> the column.
COLUMNS = {"created": "pk", "name": "name", "cost": "training_seconds", "size": "adapter__size_bytes"}
SORTS = (*COLUMNS, *METRICS)


@dataclass(frozen=True)
class RunFilter:
    """Values that listed runs have; None and "" stand for any. `low` and `high` limit `metric`."""

    state: str = ""
    q: str = ""
    base_model: int | None = None
    dataset: int | None = None
    target_module_config: int | None = None
    created_by: int | None = None
    study: int | None = None
    tag: str = ""
    stage: str = ""
    metric: str = ""
    low: float | None = None
    high: float | None = None
    has_adapter: bool = False

    def apply(self, runs: TrainingRunQuerySet) -> TrainingRunQuerySet:
        """Return the runs that match."""
        if self.state:
            runs = runs.in_group(self.state)
        if self.q:
            runs = runs.filter(name__icontains=self.q)
        if self.has_adapter:
            runs = runs.filter(adapter__isnull=False)
        if self.dataset is not None:
            versions = DatasetVersion.objects.filter(dataset=self.dataset)
            runs = runs.filter(dataset_version__in=list(versions.values_list("pk", flat=True)))
        wanted = {
            "base_model": self.base_model,
            "target_module_config": self.target_module_config,
            "created_by": self.created_by,
            "study_arm__study": self.study,
            "tags__name": self.tag or None,
            "adapter__stage": self.stage or None,
        }
        return self._in_range(runs.filter(**{name: value for name, value in wanted.items() if value}))

    def _in_range(self, runs: TrainingRunQuerySet) -> TrainingRunQuerySet:
        """Return the runs that have the metric, within its limits."""
        if not self.metric:
            return runs
        _relation, name, value = metric_columns(self.metric)
        rows: type[models.Model] = MetricSeries if "/" in self.metric else RunScore
        limits: dict[str, object] = {name: self.metric, f"{value}__isnull": False}
        if self.low is not None:
            limits[f"{value}__gte"] = self.low
        if self.high is not None:
            limits[f"{value}__lte"] = self.high
        # Beside a join in another order, databases would sort every run that matches.
        found = rows._default_manager.filter(run=models.OuterRef("pk"), **limits)
        return runs.filter(models.Exists(found))


@dataclass(frozen=True)
class RunOrder:
    """An order by a column or a metric. Runs without a value come last, the newer of equal runs first."""

    key: str
    is_descending: bool

    @classmethod
    def parse(cls, text: str) -> RunOrder:
        """Return the order of a `sort` parameter such as "-exact_match"."""
        return cls(text.removeprefix("-"), text.startswith("-"))

    def __str__(self) -> str:
        return f"-{self.key}" if self.is_descending else self.key

    def keys(self, runs: TrainingRunQuerySet, limit: int, after: int | None = None) -> list[int]:
        """Return the first `limit` keys in this order; with `after`, of the runs that follow this one."""
        if self.key == "created":
            if after is not None:
                runs = runs.filter(pk__lt=after) if self.is_descending else runs.filter(pk__gt=after)
            return keys_of(runs.order_by("-pk" if self.is_descending else "pk"), limit)
        column, is_valued = self._column()
        valued = runs.filter(is_valued)
        found = []
        last = None if after is None else valued.filter(pk=after).values_list(column, flat=True).first()
        if after is None or last is not None:
            # One relation in one filter: it reads an index in order and stops at the limit.
            found = keys_of(self._valued(runs, column, is_valued, last, after), limit)
        if len(found) < limit:
            rest = runs.exclude(pk__in=valued.values("pk")).order_by("-pk")
            rest = rest.filter(pk__lt=after) if after is not None and last is None else rest
            found += keys_of(rest, limit - len(found))
        return found

    def _column(self) -> tuple[str, models.Q]:
        """Return the column of the value, and the condition under which a run has one."""
        column = COLUMNS.get(self.key)
        if column is not None:
            return column, models.Q(**{f"{column}__isnull": False})
        relation, name, value = metric_columns(self.key)
        column = f"{relation}__{value}"
        return column, models.Q(**{f"{relation}__{name}": self.key, f"{column}__isnull": False})

    def _valued(
        self, runs: TrainingRunQuerySet, column: str, is_valued: models.Q, last: object, after: int | None
    ) -> TrainingRunQuerySet:
        """Return the runs with a value in order; with `last`, those that follow it and the run `after`."""
        if after is not None:
            compare = "lt" if self.is_descending else "gt"
            equal = models.Q(**{column: last, "pk__lt": after})
            is_valued &= models.Q(**{f"{column}__{compare}": last}) | equal
        return runs.filter(is_valued).order_by(f"-{column}" if self.is_descending else column, "-pk")


def keys_of(runs: TrainingRunQuerySet, limit: int) -> list[int]:
    """Return the first primary keys."""
    return list(runs.values_list("pk", flat=True)[:limit])


def metric_columns(metric: str) -> tuple[str, str, str]:
    """Return where a metric's value of a run is stored: relation, column of the name, column of the value."""
    return ("metric_series", "name", "last") if "/" in metric else ("stored_scores", "metric", "value")


def best_first(metric: str) -> RunOrder:
    """Return the order that begins with the best value of a metric."""
    return RunOrder(metric, METRICS[metric].higher_is_better)


def listed_runs(project: Project, filter_: RunFilter) -> TrainingRunQuerySet:
    """Return the project's runs that match; a run that stands in for others is listed once."""
    runs = TrainingRun.objects.filter(project=project)
    # A study lists its reused runs as well, because they are its arms.
    return filter_.apply(runs if filter_.study else runs.filter(reused_from=None))
