"""The columns that the tables of runs and of adapters offer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy

from dashboard.models import Adapter, TrainingRun
from dashboard.models.catalog.metrics import METRICS, Metric
from dashboard.models.evaluations.run_list import RunOrder, best_first
from dashboard.templatetags.graftworks import (
    ago,
    duration,
    filesize,
    number,
    percent,
    rate,
    state_word,
    status,
)

CsvValue = str | float | None


@dataclass(frozen=True)
class Column:
    """A column: what a cell shows, and its values in a CSV file under `csv_names`.

    `order`: the order that a click on the heading gives first; None if the list cannot be sorted by it.
    """

    key: str
    label: Any
    show: Callable[[TrainingRun], Any]
    csv: Callable[[TrainingRun], Sequence[CsvValue]]
    csv_names: tuple[str, ...]
    order: RunOrder | None = None
    is_number: bool = False


def plain(key: str, label: Any, value: Callable[[TrainingRun], CsvValue], **options: Any) -> Column:
    """Return a column that shows one value as it is."""
    return Column(
        key, label, lambda run: or_dash(value(run)), lambda run: (value(run),), csv_names=(key,), **options
    )


def formatted(
    key: str, label: Any, value: Callable[[TrainingRun], CsvValue], show: Callable[[Any], Any], **options: Any
) -> Column:
    """Return a column of numbers with a unit."""
    return Column(
        key,
        label,
        lambda run: show(value(run)),
        lambda run: (value(run),),
        csv_names=(key,),
        is_number=True,
        **options,
    )


def or_dash(value: Any) -> Any:
    return "–" if value is None or value == "" else value


def adapter_of(run: TrainingRun) -> Adapter | None:
    return getattr(run, "adapter", None)


def score_of(run: TrainingRun, metric: str) -> tuple[float | None, float | None]:
    """Return base model's and adapter's value of a metric; a curve has only the last value."""
    if "/" in metric:
        return None, next((row.last for row in run.metric_series.all() if row.name == metric), None)
    scores = run.stored_scores.all()  # type: ignore[attr-defined]
    return next(((row.base, row.value) for row in scores if row.metric == metric), (None, None))


def main_metric(run: TrainingRun) -> Metric:
    """Return the metric of its study, else the one that fits its dataset."""
    return METRICS[run.study_arm.study.metric if run.study_arm else run.dataset_version.main_metric]


def score_text(metric: Metric, base: float | None, own: float | None) -> Any:
    """Return base → adapter, or the adapter's value alone."""
    if own is None:
        return "–"
    show = percent if metric.is_share else number
    if base is None:
        return format_html("<strong>{}</strong>", show(own))
    return format_html("{} → <strong>{}</strong>", show(base), show(own))


def main_score(run: TrainingRun) -> Any:
    """Return the score by the run's own metric, with its name."""
    metric = main_metric(run)
    text = score_text(metric, *score_of(run, metric.name))
    return text if text == "–" else format_html('{}<div class="text-secondary">{}</div>', text, metric.label)


def metric_column(metric: Metric) -> Column:
    def show(run: TrainingRun) -> Any:
        return score_text(metric, *score_of(run, metric.name))

    names = (metric.name,) if "/" in metric.name else (f"base {metric.name}", metric.name)
    return Column(
        metric.name,
        metric.label,
        show,
        lambda run: score_of(run, metric.name)[-len(names) :],
        names,
        order=best_first(metric.name),
        is_number=True,
    )


def tag_links(run: TrainingRun) -> Any:
    """Return links to the runs with the same tag."""
    if not run.tags.all():
        return ""
    address = reverse("training-run-index")
    links = ((address, quote(tag.name), tag.name) for tag in run.tags.all())
    return format_html_join(" ", '<a class="tag" href="{}?tag={}">{}</a>', links)


def person(run: TrainingRun) -> str:
    return str(run.created_by) if run.created_by else ""


def started(run: TrainingRun) -> SafeString:
    """Return when a run was started, and by whom."""
    return format_html('{}<div class="text-secondary">{}</div>', ago(run.created_at), person(run))


def run_link(run: TrainingRun) -> Any:
    return format_html(
        '<a class="card-link-title" href="{}">{}</a> <span class="text-secondary">#{}</span> {}',
        run.get_absolute_url(),
        run.name,
        run.pk,
        tag_links(run),
    )


def adapter_link(run: TrainingRun) -> Any:
    adapter = run.adapter
    return format_html(
        '<a class="card-link-title" href="{}">{}</a> <span class="text-secondary">v{}</span> {}',
        adapter.get_absolute_url(),
        adapter.name,
        adapter.version,
        tag_links(run),
    )


def study_link(run: TrainingRun) -> Any:
    if run.study_arm is None:
        return "–"
    study = run.study_arm.study
    return format_html('<a href="{}">{}</a>', reverse("study-detail", args=[study.pk]), study.name)


def state_cell(run: TrainingRun) -> SafeString:
    """Return the state; the list renews that of a run that goes on."""
    return (
        status(run.state, "train")
        if run.is_over
        else render_to_string("training/list/_state.html", {"run": run})
    )


def hyperparameter(name: str, run: TrainingRun) -> CsvValue:
    value: CsvValue = run.hyperparameters.get(name)
    return value


def common_columns() -> Iterator[Column]:
    """Yield what both tables offer besides the name."""
    yield Column(
        "state",
        gettext_lazy("State"),
        state_cell,
        lambda run: (state_word(run.state, "train"),),
        ("state",),
    )
    yield Column(
        "score",
        gettext_lazy("Base → adapter"),
        main_score,
        lambda run: (main_metric(run).name, *score_of(run, main_metric(run).name)),
        ("main metric", "base", "adapter"),
        is_number=True,
    )
    yield plain("target_modules", gettext_lazy("Target modules"), lambda run: run.target_module_config.name)
    yield plain("base_model", gettext_lazy("Base model"), lambda run: run.base_model.name)
    yield plain("dataset", gettext_lazy("Dataset"), lambda run: str(run.dataset_version))
    yield Column(
        "study",
        gettext_lazy("Study"),
        study_link,
        lambda run: (run.study_arm.study.name if run.study_arm else None,),
        ("study",),
    )
    yield formatted(
        "cost",
        gettext_lazy("Training time"),
        lambda run: run.training_seconds,
        duration,
        order=RunOrder("cost", is_descending=True),
    )
    yield formatted(
        "size",
        gettext_lazy("Size"),
        lambda run: adapter.size_bytes if (adapter := adapter_of(run)) else None,
        filesize,
        order=RunOrder("size", is_descending=False),
    )
    yield plain(
        "stage",
        gettext_lazy("Stage"),
        lambda run: str(adapter.get_stage_display()) if (adapter := adapter_of(run)) else None,
    )
    yield Column(
        "created",
        gettext_lazy("Started"),
        started,
        lambda run: (run.created_at.isoformat(timespec="seconds"), person(run)),
        ("started", "started by"),
        order=RunOrder("created", is_descending=True),
    )
    yield plain("note", gettext_lazy("Note"), lambda run: run.note)
    yield Column(
        "tags",
        gettext_lazy("Tags"),
        tag_links,
        lambda run: (", ".join(tag.name for tag in run.tags.all()),),
        ("tags",),
    )
    for name, label, show in (
        ("r", gettext_lazy("Rank"), number),
        ("learning_rate", gettext_lazy("Learning rate"), rate),
        ("seed", gettext_lazy("Random seed"), number),
    ):
        yield formatted(name, label, partial(hyperparameter, name), show)
    yield from map(metric_column, METRICS.values())


BY_NAME = RunOrder("name", is_descending=False)
RUN_NAME = Column(
    "name", gettext_lazy("Name"), run_link, lambda run: (run.pk, run.name), ("run", "name"), order=BY_NAME
)
ADAPTER_NAME = Column(
    "name",
    gettext_lazy("Name"),
    adapter_link,
    lambda run: (run.pk, run.adapter.name, run.adapter.version),
    ("run", "name", "version"),
    order=BY_NAME,
)


@dataclass(frozen=True)
class RunTable:
    """One of the two tables: its columns by key, and those that it shows unless others are chosen."""

    columns: Mapping[str, Column]
    default: tuple[str, ...]

    @classmethod
    def of(cls, name: Column, *default: str) -> RunTable:
        columns = (name, *common_columns())
        return cls({column.key: column for column in columns}, (name.key, *default))

    def chosen(self, keys: Sequence[str], order: RunOrder) -> list[Column]:
        """Return the chosen columns in their order, after the name, and the metric of the order."""
        wanted = ["name", *(keys or self.default)]
        wanted += [order.key] if order.key in METRICS else []
        return [self.columns[key] for key in dict.fromkeys(wanted)]


RUNS = RunTable.of(RUN_NAME, "state", "score", "target_modules", "base_model", "dataset", "cost", "created")
ADAPTERS = RunTable.of(
    ADAPTER_NAME, "stage", "score", "target_modules", "base_model", "dataset", "study", "size", "created"
)
