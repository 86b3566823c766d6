"""The table of runs and of adapters: a page of rows with what the chosen columns show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from django.db.models import Prefetch
from django.utils.html import conditional_escape, format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext, gettext_lazy

from dashboard.models import (
    BaseModel,
    DatasetVersion,
    MetricSeries,
    Project,
    RunScore,
    StudyArm,
    Tag,
    TargetModuleConfig,
    TrainingRun,
)
from dashboard.models.catalog.metrics import METRICS
from dashboard.models.evaluations.run_list import RunFilter, RunOrder, best_first, listed_runs
from dashboard.models.training.training_run import TrainingRunQuerySet
from dashboard.presenters.run_columns import Column, CsvValue

PAGE = 25
ORDERS = {
    "-created": gettext_lazy("Newest first"),
    "created": gettext_lazy("Oldest first"),
    "name": gettext_lazy("Name, A to Z"),
    "-name": gettext_lazy("Name, Z to A"),
    "cost": gettext_lazy("Shortest training first"),
    "-cost": gettext_lazy("Longest training first"),
    "size": gettext_lazy("Smallest adapter first"),
    "-size": gettext_lazy("Largest adapter first"),
}
# Rows that a CSV file loads at a time.
BATCH = 500
# What the cells read of the rows that a run refers to.
RELATED = {
    "job": ("state", "kind", "phase", "step", "total_steps", "eta_seconds", "keep"),
    "adapter": ("name", "version", "stage", "size_bytes"),
    "created_by": ("email", "first_name", "last_name"),
}
RELATED_FIELDS = (
    *("base_model", "target_module_config", "dataset_version", "study_arm"),
    *(f"{row}__{field}" for row, fields in RELATED.items() for field in fields),
)


def orders(present: RunOrder) -> dict[str, str]:
    """Return the orders of the menu; metrics have their best value first, but for the present order."""
    found = {key: str(label) for key, label in ORDERS.items()}
    for name, metric in METRICS.items():
        found[str(best_first(name))] = gettext("%(metric)s, best first") % {"metric": metric.label}
    if str(present) not in found:
        found[str(present)] = gettext("%(metric)s, worst first") % {"metric": METRICS[present.key].label}
    return found


def page_of_runs(
    project: Project, filter_: RunFilter, order: RunOrder, columns: Sequence[Column], after: int | None
) -> tuple[list[TrainingRun], int | None]:
    """Return a page of runs with what the columns show, and the cursor of the next page, if any."""
    # Keys first: the wide rows are then read for one page only.
    keys = order.keys(listed_runs(project, filter_), PAGE + 1, after)
    return load_runs(keys[:PAGE], columns), keys[PAGE - 1] if len(keys) > PAGE else None


def load_runs(keys: Sequence[int], columns: Sequence[Column]) -> list[TrainingRun]:
    """Return the runs of these keys, in that order, with what the columns show."""
    shown = {column.key for column in columns}
    fields = ["name", "reused_from", "outcome", "training_seconds", "created_at", "note"]
    # The spec is some kilobytes of JSON.
    fields += ["spec"] if shown & {"r", "learning_rate", "seed"} else []
    runs = TrainingRun.objects.select_related("job", "adapter", "created_by").prefetch_related(
        Prefetch("base_model", BaseModel.objects.only("name")),
        Prefetch("target_module_config", TargetModuleConfig.objects.only("name")),
        Prefetch(
            "dataset_version",
            DatasetVersion.objects.select_related("dataset").only("version", "report", "dataset__name"),
        ),
        Prefetch("study_arm", StudyArm.objects.select_related("study").only("study__name", "study__metric")),
        Prefetch("tags", Tag.objects.all()),
        Prefetch("stored_scores", RunScore.objects.all()),
    )
    if any("/" in key for key in shown):
        runs = runs.prefetch_related(
            Prefetch("metric_series", MetricSeries.objects.filter(name__contains="/loss"))
        )
    found = runs.only(*fields, *RELATED_FIELDS).in_bulk(list(keys))
    return [found[key] for key in keys if key in found]


def with_states(runs: TrainingRunQuerySet, keys: Sequence[int]) -> list[TrainingRun]:
    """Return those of the runs that have these keys, with what their state shows."""
    fields = ("outcome", "reused_from", *(f"job__{field}" for field in RELATED["job"]))
    return list(runs.filter(pk__in=keys).select_related("job").only(*fields))


def table_rows(
    runs: Sequence[TrainingRun], columns: Sequence[Column]
) -> list[tuple[TrainingRun, SafeString]]:
    """Return each run with its cells as HTML.

    Written here and not in a template, which takes three times as long for a thousand cells.
    """
    starts = [cell_start(column) for column in columns]
    return [
        (
            run,
            mark_safe(  # noqa: S308 - every part is escaped
                "".join(
                    f"{start}{conditional_escape(column.show(run))}</td>"
                    for start, column in zip(starts, columns, strict=True)
                )
            ),
        )
        for run in runs
    ]


def cell_start(column: Column) -> SafeString:
    """Return the opening tag of a column's cells; on a phone the label stands beside the value."""
    css = {"name": "name", "note": "note"}.get(column.key, "num" if column.is_number else "")
    if column.key == "name":
        return format_html('<td class="{}">', css)
    return format_html('<td data-label="{}" class="{}">', column.label, css)


def csv_rows(keys: Sequence[int], columns: Sequence[Column]) -> Iterator[list[CsvValue]]:
    """Yield the heading and the rows of a CSV file of these runs."""
    yield [name for column in columns for name in column.csv_names]
    for start in range(0, len(keys), BATCH):
        for run in load_runs(keys[start : start + BATCH], columns):
            yield [value for column in columns for value in column.csv(run)]
