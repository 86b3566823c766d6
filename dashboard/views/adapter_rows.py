"""The rows of the list of adapters: a study's stand behind the one that should be looked at first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.db.models import Prefetch

from dashboard.charts import ScoreRow
from dashboard.models import Adapter, Evaluation, Study, TrainingRun
from dashboard.models.adapter import AdapterQuerySet
from dashboard.models.metrics import METRICS
from dashboard.models.study_words import recommended_arm


@dataclass(frozen=True)
class Row:
    """An adapter with its score, and the number of other adapters of its study that the row stands for."""

    adapter: Adapter
    score: ScoreRow
    more: int

    @property
    def study(self) -> Study | None:
        """The study that it was trained in."""
        return self.adapter.run.study_arm.study if self.adapter.run.study_arm else None


def folded_rows(adapters: AdapterQuerySet, page: Sequence[Adapter]) -> list[Row]:
    """The rows of a page of `adapters.folded()`: each study by its first adapter, and how many others."""
    arms = dict(adapters.filter(pk__in=[one.pk for one in page]).values_list("pk", "run__study_arm__study"))
    orders = ranked(adapters, Study.objects.filter(pk__in={pk for pk in arms.values() if pk}))
    shown = []
    for one in page:
        order = orders.get(arms[one.pk] or 0, [one.pk])
        shown.append((order[0], len(order) - 1))
    return rows_of(shown)


def rows_of(shown: Sequence[tuple[int, int]]) -> list[Row]:
    """Rows for (adapter, how many stand behind it), in that order."""
    found = Adapter.objects.with_facts().select_related("run__study_arm__study")
    adapters = found.prefetch_related("run__evaluations__job").in_bulk([pk for pk, _more in shown])
    bases = Evaluation.objects.base_by_study(
        {one.run.study_arm.study for one in adapters.values() if one.run.study_arm}
    )
    rows = []
    for pk, more in shown:
        adapter = adapters[pk]
        scores, arm = adapter.run.scores(), adapter.run.study_arm
        metric = arm.study.metric if arm else adapter.run.dataset_version.main_metric
        base = scores.get("base") or (bases[arm.study_id].metrics if arm and arm.study_id in bases else {})
        tuned = scores.get("adapter", {})
        score = ScoreRow(METRICS[metric], base.get(metric), tuned.get(metric))
        rows.append(Row(adapter, score, more))
    return rows


def ranked(adapters: AdapterQuerySet, studies: Iterable[Study]) -> dict[int, list[int]]:
    """The adapters of each study: approved before drafts before retired, then by arm, then by seed.

    Those that no longer count, as another rate did better, come last. Seeds stay in their order: the highest
    first would be a choice by chance.
    """
    runs = TrainingRun.objects.only("study_arm", "rung", "forecast", "spec")
    planned = Study.objects.filter(pk__in=[study.pk for study in studies])
    known = list(planned.prefetch_related(Prefetch("arms__runs", runs)))
    places = {study.pk: places_of(study) for study in known}
    final = {run.pk for study in known for run in study.final_runs()}
    stages = [Adapter.Stage.APPROVED, Adapter.Stage.DRAFT, Adapter.Stage.RETIRED]
    found: dict[int, list[tuple[int, bool, int, int]]] = {pk: [] for pk in places}
    facts = ("pk", "stage", "run", "run__study_arm", "run__study_arm__study")
    those = adapters.filter(run__study_arm__study__in=list(places)).order_by()
    for pk, stage, run, arm, study in those.values_list(*facts):
        place = places[study][arm]
        found[study].append((stages.index(Adapter.Stage(stage)), run not in final, place, pk))
    return {study: [pk for *_order, pk in sorted(members)] for study, members in found.items()}


def places_of(study: Study) -> dict[int, int]:
    """Where each arm stands: the one that the evidence speaks for first, then by mean, then as planned."""
    sign = 1 if study.lower_is_better else -1
    means = {arm.name: sign * arm.metric.mean for arm in study.result.arms}
    first = recommended_arm(study) if means else ""
    arms = sorted(
        study.arms.all(),
        key=lambda arm: (arm.name != first, means.get(arm.name, float("inf")), arm.position),
    )
    return {arm.pk: place for place, arm in enumerate(arms)}
