"""Rows of the list of adapters; each study has one row, for its best adapter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.db.models import Prefetch

from dashboard.charts.curves import ScoreRow
from dashboard.models import Adapter, Study, TrainingRun
from dashboard.models.adapters.adapter import AdapterQuerySet
from dashboard.models.catalog.metrics import METRICS
from dashboard.models.studies.results.verdict_sentence import recommended_arm


@dataclass(frozen=True)
class Row:
    """An adapter with its score, and the number of other adapters of its study that the row stands for."""

    adapter: Adapter
    score: ScoreRow
    others: int

    @property
    def study(self) -> Study | None:
        """Return the study of the adapter's run."""
        return self.adapter.run.study_arm.study if self.adapter.run.study_arm else None


def grouped_rows(adapters: AdapterQuerySet, page: Sequence[Adapter]) -> list[Row]:
    """Return the rows of a page of `adapters.one_per_study()`: the best adapter of each study."""
    studies = dict(
        adapters.filter(pk__in=[adapter.pk for adapter in page]).values_list("pk", "run__study_arm__study")
    )
    orders = ranked(adapters, Study.objects.filter(pk__in={pk for pk in studies.values() if pk}))
    entries = []
    for adapter in page:
        order = orders.get(studies[adapter.pk] or 0, [adapter.pk])
        entries.append((order[0], len(order) - 1))
    return rows_of(entries)


def rows_of(entries: Sequence[tuple[int, int]]) -> list[Row]:
    """Return rows for (adapter, number of others that the row stands for), in that order."""
    query = Adapter.objects.with_facts().select_related("run__study_arm__study")
    adapters = query.prefetch_related(
        "run__evaluations__job", "run__evaluations__base_evaluation__job"
    ).in_bulk([pk for pk, _others in entries])
    rows = []
    for pk, others in entries:
        adapter = adapters[pk]
        scores, arm = adapter.run.scores(), adapter.run.study_arm
        metric = arm.study.metric if arm else adapter.run.dataset_version.main_metric
        base, own = scores.get("base", {}), scores.get("adapter", {})
        score = ScoreRow(METRICS[metric], base.get(metric), own.get(metric))
        rows.append(Row(adapter, score, others))
    return rows


def ranked(adapters: AdapterQuerySet, studies: Iterable[Study]) -> dict[int, list[int]]:
    """Return the adapters of each study: approved, draft, retired; then by arm, then by seed.

    Adapters of discarded learning rates come last. Seeds keep their order: the highest score first would be
    a choice by chance.
    """
    runs = TrainingRun.objects.only("study_arm", "rung", "forecast", "spec")
    planned = Study.objects.filter(pk__in=[study.pk for study in studies])
    loaded = list(planned.prefetch_related(Prefetch("arms__runs", runs)))
    positions = {study.pk: arm_positions(study) for study in loaded}
    final = {run.pk for study in loaded for run in study.final_runs()}
    stages = [Adapter.Stage.APPROVED, Adapter.Stage.DRAFT, Adapter.Stage.RETIRED]
    order: dict[int, list[tuple[int, bool, int, int]]] = {pk: [] for pk in positions}
    fields = ("pk", "stage", "run", "run__study_arm", "run__study_arm__study")
    members = adapters.filter(run__study_arm__study__in=list(positions)).order_by()
    for pk, stage, run, arm, study in members.values_list(*fields):
        position = positions[study][arm]
        order[study].append((stages.index(Adapter.Stage(stage)), run not in final, position, pk))
    return {study: [pk for *_key, pk in sorted(keys)] for study, keys in order.items()}


def arm_positions(study: Study) -> dict[int, int]:
    """Return the position of each arm: the recommended one first, then by mean, then as planned."""
    sign = 1 if study.lower_is_better else -1
    means = {arm.name: sign * arm.metric.mean for arm in study.result.arms}
    first = recommended_arm(study) if means else ""
    arms = sorted(
        study.arms.all(),
        key=lambda arm: (arm.name != first, means.get(arm.name, float("inf")), arm.position),
    )
    return {arm.pk: position for position, arm in enumerate(arms)}
