"""Items of an evaluation: prompt, expected answer, output and scores of each row."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence

import pydantic_core
from django.db import models
from django.db.models.functions import Cast, Length

from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.evaluations.evaluation import Evaluation, adapter_evaluation, base_evaluation
from dashboard.models.training.training_run import TrainingRun

# The newest arms, their seeds and rows that a variance is estimated from: fast enough while a user types.
VARIANCE_ARMS, VARIANCE_SEEDS, VARIANCE_ROWS = 4, 3, 500


class EvaluationItemQuerySet(models.QuerySet["EvaluationItem"]):
    """Items in pairs of base model and adapter."""

    def pairs(
        self, run: TrainingRun, rows: Sequence[int] | None = None
    ) -> list[tuple[EvaluationItem, EvaluationItem]]:
        """Return (base item, adapter item) of the newest ended evaluation of a run, in order of rows.

        `rows`: those to read; all by default.
        """
        sides = (base_evaluation(run), adapter_evaluation(run))
        if not all(sides):
            return []
        items = self.order_by() if rows is None else self.filter(row__in=rows).order_by()
        base, adapter = ({item.row: item for item in items.filter(evaluation=side)} for side in sides)
        return [(base[row], adapter[row]) for row in sorted(base.keys() & adapter.keys())]

    def pair_facts(self, run: TrainingRun) -> list[tuple[int, bool, bool]]:
        """Return (row, the answers differ, the adapter's is right) of each of `pairs`, without texts."""
        base, adapter = base_evaluation(run), adapter_evaluation(run)
        if not (base and adapter):
            return []
        theirs = dict(self.filter(evaluation=base).order_by().values_list("row", "output"))
        own = self.filter(evaluation=adapter).order_by("row")
        return [
            (row, output != theirs[row], bool(pydantic_core.from_json(scores).get("exact_match")))
            for row, output, scores in own.values_list("row", "output", Cast("scores", models.TextField()))
            if row in theirs
        ]

    def shortest_difference(
        self, base: Evaluation, adapter: Evaluation, letters: int
    ) -> tuple[EvaluationItem, EvaluationItem] | None:
        """Return (base item, adapter item) of the row with the shortest prompt whose answers differ.

        None if no answer to one prompt of at most `letters` letters, with its system message, differs.
        """
        theirs = self.filter(evaluation=base, row=models.OuterRef("row")).values("output")[:1]
        items = self.filter(evaluation=adapter, system__isnull=False).annotate(
            letters=Length("system") + Length("prompt"), base_output=models.Subquery(theirs)
        )
        different = items.filter(letters__lte=letters).exclude(base_output=None)
        item = different.exclude(output=models.F("base_output")).order_by("letters", "row").first()
        return None if item is None else (self.get(evaluation=base, row=item.row), item)

    def values_of(self, metric: str) -> Iterator[tuple[int, int, float]]:
        """Yield evaluation, row and the metric's value; a score that was no finite number is left out."""
        rows = self.values_list("evaluation_id", "row", Cast("scores", models.TextField()))
        for evaluation, row, text in rows.iterator():
            # A study has thousands, and this reads JSON in a quarter of the time of Django's field.
            value = pydantic_core.from_json(text).get(metric)
            if value is not None:
                yield evaluation, row, float(value)

    def groups_of(self, evaluation: Evaluation | None) -> dict[int, int]:
        """Return the group of each row, as the number of its first row; rows without a group are left out."""
        items = self.filter(evaluation=evaluation) if evaluation else self.none()
        return {row: group for row, group in items.values_list("row", "group") if group is not None}

    def variance_of_difference(self, version: DatasetVersion, metric: str) -> float | None:
        """Return the variance of the difference between two arms' scores of one row, means over their seeds.

        For 0-or-1 scores it is about the share of rows on which the two disagree. A run outside of a study is
        an arm by itself. None before two arms were evaluated on this data, and if the last ones never
        disagreed, which says little.
        """
        ended = Evaluation.objects.ended().filter(
            dataset_version=version, subject=Evaluation.Subject.ADAPTER, reused_from=None
        )
        ordered = ended.order_by("pk").values_list("run", "run__study_arm", "pk")
        newest = {run: (arm or -run, pk) for run, arm, pk in ordered}
        by_arm: dict[int, list[int]] = {}
        for arm, pk in sorted(newest.values(), key=lambda pair: pair[1]):
            by_arm.setdefault(arm, []).append(pk)
        newest_arms = sorted(by_arm.values(), key=max)[-VARIANCE_ARMS:]
        tables = [self._mean_scores(pks[-VARIANCE_SEEDS:], metric) for pks in newest_arms]
        variances = []
        for first, second in itertools.combinations(tables, 2):
            differences = [first[row] - second[row] for row in first.keys() & second.keys()]
            if len(differences) > 1:
                variances.append(statistics.variance(differences))
        return statistics.fmean(variances) or None if variances else None

    def _mean_scores(self, evaluations: Sequence[int], metric: str) -> dict[int, float]:
        """Return row -> mean score, of the first rows that all of the evaluations have."""
        tables = [
            dict(
                self.filter(evaluation=pk, scores__has_key=metric).values_list("row", f"scores__{metric}")[
                    :VARIANCE_ROWS
                ]
            )
            for pk in evaluations
        ]
        rows = set(tables[0]).intersection(*tables)
        return {row: statistics.fmean(table[row] for table in tables) for row in rows}


class EvaluationItem(models.Model):
    """The prompt, expected answer, output and scores of one row."""

    evaluation = models.ForeignKey(Evaluation, models.CASCADE, related_name="items")
    row = models.PositiveIntegerField()
    # The number of the first row of its group; its own number for a row without a group.
    group = models.PositiveIntegerField(null=True, blank=True)
    # Null for rows that a system message and one prompt cannot repeat: several turns, or plain text.
    system = models.TextField(null=True, blank=True)  # noqa: DJ001
    prompt = models.TextField()
    expected = models.TextField()
    output = models.TextField()
    scores = models.JSONField(default=dict)

    objects = EvaluationItemQuerySet.as_manager()

    class Meta:
        ordering = ["evaluation", "row"]
        constraints = [
            models.UniqueConstraint(fields=["evaluation", "row"], name="evaluation_item_once_per_row")
        ]

    def __str__(self) -> str:
        return f"row {self.row} of evaluation {self.evaluation_id}"

    @property
    def is_right(self) -> bool:
        """Return whether the answer equals the expected one."""
        return bool(self.scores.get("exact_match"))
