"""Any chosen runs as arms: runs that differ in nothing but the seed are one arm; arms are compared in pairs.

Nobody fixed a margin before, so nothing is ever called "as good". Numbers are kept in the cache, as rows and
scores of an evaluation that has ended never change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from django.core.cache import cache
from django.utils.translation import gettext_lazy

from dashboard.models.evaluation import Evaluation, EvaluationItem
from dashboard.models.job_state import State
from dashboard.models.judging import JudgeEvaluation
from dashboard.models.metrics import JUDGE
from dashboard.models.study_plan import LOWER_IS_BETTER, METRICS, default_metric
from dashboard.models.study_result import against, clusters_of, common_rows, estimated, matrix
from dashboard.models.training_run import TrainingRun
from workers import verdicts

BETTER, WORSE = "better", "worse"
COMPARED_BY = {**METRICS, JUDGE: gettext_lazy("Judged right")}
KEPT_SECONDS = 30 * 24 * 3600
# Part of the cache's key: numbers of another way of counting are not taken for these.
WAY = 2

# seed -> row -> score
BySeed = dict[int, dict[int, float]]


@dataclass(frozen=True)
class ComparedArm:
    """Runs with the same data, base model, modules and settings: one per seed."""

    runs: list[TrainingRun]
    # Same settings and same seed once more: they tell nothing new, so they are shown and not counted.
    repeats: list[TrainingRun] = field(default_factory=list)

    def __str__(self) -> str:
        return self.name

    @property
    def first(self) -> TrainingRun:
        """The run that speaks for all of them."""
        return self.runs[0]

    @property
    def name(self) -> str:
        """What it is called on the page; names of runs repeat, so the number tells them apart."""
        arm = self.first.study_arm
        return f"{arm.name if arm and len(self.runs) > 1 else self.first.name} #{self.first.pk}"

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs."""
        return [run.seed for run in self.runs]

    def evaluations(self) -> dict[int, Evaluation]:
        """The newest ended evaluation of each run's adapter, by seed."""
        found = {}
        for run in self.runs:
            for evaluation in sorted(run.evaluations.all(), key=lambda one: one.pk):
                ended = evaluation.state == State.SUCCEEDED
                if ended and evaluation.subject == Evaluation.Subject.ADAPTER and evaluation.rows:
                    found[run.seed] = evaluation
        return found


def arms_of(runs: Sequence[TrainingRun]) -> list[ComparedArm]:
    """The chosen runs as arms, in the order in which they were chosen."""
    arms: dict[str, ComparedArm] = {}
    for run in runs:
        settings = {name: value for name, value in run.hyperparameters.items() if name != "seed"}
        target = run.spec.get("target", {})
        same = json.dumps([run.dataset_version_id, run.base_model_id, target, settings], sort_keys=True)
        arm = arms.setdefault(same, ComparedArm([]))
        (arm.repeats if run.seed in arm.seeds else arm.runs).append(run)
    return list(arms.values())


@dataclass(frozen=True)
class Comparison:
    """Arms against the reference that somebody pinned, by one metric."""

    arms: list[ComparedArm]
    reference: ComparedArm
    metric: str
    metrics: list[str]
    bases: dict[str, Evaluation]

    @classmethod
    def of(cls, runs: Sequence[TrainingRun], metric: str = "", reference: str = "") -> Comparison:
        """The comparison of at least one run; unknown metric or reference: the first that has scores."""
        arms = arms_of(runs)
        scored = [arm for arm in arms if arm.evaluations()]
        pinned = [arm for arm in arms if reference in {str(run.pk) for run in [*arm.runs, *arm.repeats]}]
        chosen = (pinned or scored or arms)[0]
        metrics = metrics_of(chosen, scored)
        usual = default_metric(chosen.first.dataset_version)
        wanted = metric if metric in metrics else usual if usual in metrics else next(iter(metrics), usual)
        return cls(arms, chosen, wanted, metrics, base_evaluations(chosen, arms))

    @property
    def lower_is_better(self) -> bool:
        """Whether the metric is a loss."""
        return self.metric in LOWER_IS_BETTER

    @property
    def metric_label(self) -> str:
        """The metric in words."""
        return str(COMPARED_BY.get(self.metric, self.metric))

    @cached_property
    def scored(self) -> list[ComparedArm]:
        """Arms that were scored on the reference's own data, and so can be compared with it."""
        place = place_of(self.reference)
        return [arm for arm in self.arms if place and place_of(arm) == place]

    @cached_property
    def unscored(self) -> list[ComparedArm]:
        """Arms without any scores."""
        return [arm for arm in self.arms if not arm.evaluations()]

    @cached_property
    def elsewhere(self) -> list[ComparedArm]:
        """Arms that were scored on other rows than the reference was."""
        return [arm for arm in self.arms if arm not in self.scored and arm not in self.unscored]

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """Items, bases, arms and comparisons, as a study's result has them; `{"arms": []}` without any.

        Kept in the cache by the evaluations, the metric and the reference: the draws take seconds.
        """
        plan = [
            WAY,
            self.metric,
            self.reference.name,
            [
                [arm.name, sorted((seed, *self._state_of(one)) for seed, one in arm.evaluations().items())]
                for arm in self.scored
            ],
            sorted((name, *self._state_of(one)) for name, one in self.bases.items()),
        ]
        key = "comparison-" + hashlib.sha256(json.dumps(plan).encode()).hexdigest()
        known = cache.get(key)
        if known is None:
            known = self._count()
            cache.set(key, known, KEPT_SECONDS)
        return dict(known)

    def _state_of(self, evaluation: Evaluation) -> tuple[Any, ...]:
        """Which scores these are: an ended evaluation keeps its own, but the judge's may come later."""
        if self.metric != JUDGE:
            return (evaluation.pk,)
        judged = (evaluation.metrics.get(name) for name in (JUDGE, "judge_rows"))
        return (evaluation.pk, evaluation.judge_evaluation_id, *judged)

    @cached_property
    def judges(self) -> set[tuple[str, str]]:
        """Model and prompt of the judges whose verdicts are compared; none for other metrics."""
        if self.metric != JUDGE:
            return set()
        evaluations = [one for arm in self.scored for one in arm.evaluations().values()]
        judge_evaluations = [
            one.judge_evaluation_id for one in [*evaluations, *self.bases.values()] if one.judge_evaluation_id
        ]
        return set(
            JudgeEvaluation.objects.filter(pk__in=judge_evaluations).values_list("model", "prompt_sha256")
        )

    def scores(self) -> tuple[dict[str, BySeed], dict[str, dict[int, float]]]:
        """The metric's value of every item: by arm and seed, and of each base model; one query."""
        evaluations = {arm.name: arm.evaluations() for arm in self.scored}
        wanted = [one.pk for by_seed in evaluations.values() for one in by_seed.values()]
        wanted += [one.pk for one in self.bases.values()]
        values: dict[int, dict[int, float]] = {pk: {} for pk in wanted}
        items = EvaluationItem.objects.filter(evaluation__in=wanted).order_by()
        for pk, row, scores in items.values_list("evaluation_id", "row", "scores").iterator():
            if self.metric in scores:
                values[pk][row] = float(scores[self.metric])
        arms = {
            name: {seed: values[one.pk] for seed, one in sorted(by_seed.items()) if values[one.pk]}
            for name, by_seed in evaluations.items()
        }
        bases = {name: values[one.pk] for name, one in self.bases.items() if values[one.pk]}
        return {name: seeds for name, seeds in arms.items() if seeds}, bases

    def groups(self) -> dict[int, int]:
        """Row -> its group; the newest evaluation tells, because an older one may be from before groups."""
        evaluations = [one for arm in self.scored for one in arm.evaluations().values()]
        newest = max(evaluations, key=lambda one: one.pk, default=None)
        return EvaluationItem.objects.groups_of(newest)

    def _count(self) -> dict[str, Any]:
        arms, bases = self.scores()
        rows = common_rows(arms, {})
        if not rows or not arms:
            return {"arms": []}
        sign = -1.0 if self.lower_is_better else 1.0
        is_share = not self.lower_is_better
        paired = pairable(arms, self.reference.name)
        clusters = clusters_of(rows, self.groups())
        return {
            "items": len(rows),
            "groups": len(set(clusters)) if clusters else len(rows),
            "most_items": max(len(values) for seeds in arms.values() for values in seeds.values()),
            "bases": {
                name: estimated(matrix([values], rows), clusters, is_share=is_share)
                for name, values in bases.items()
                if values.keys() >= set(rows)
            },
            "arms": [
                {
                    "name": name,
                    "seeds": sorted(seeds),
                    "by_seed": [float(np.mean([seeds[seed][row] for row in rows])) for seed in sorted(seeds)],
                    "metric": estimated(
                        matrix([seeds[seed] for seed in sorted(seeds)], rows), clusters, is_share=is_share
                    ),
                }
                for name, seeds in arms.items()
            ],
            "comparisons": [
                {**one, "outcome": outcome(one), "paired": set(arms[one["arm"]]) >= set(one["seeds"])}
                for one in against(self.reference.name, paired, {}, rows, clusters, sign, 0.0)
            ],
        }


def outcome(one: dict[str, Any]) -> str:
    """What may be said without a margin: better or worse after the correction, else that it is not known."""
    if len(one["seeds"]) < verdicts.MIN_SEEDS:
        return verdicts.INDICATIVE_ONLY
    if one["p_adjusted"] < 1 - verdicts.LEVEL:
        return BETTER if one["difference"] > 0 else WORSE
    return verdicts.NOT_ENOUGH_EVIDENCE


def pairable(arms: dict[str, BySeed], reference: str) -> dict[str, BySeed]:
    """Arms that share no seed with the reference are paired with its seeds in order: as good, less sharp."""
    pinned = sorted(arms.get(reference, {}))
    return {
        name: seeds
        if seeds.keys() & set(pinned)
        else dict(zip(pinned, (seeds[seed] for seed in sorted(seeds)), strict=False))
        for name, seeds in arms.items()
    }


def place_of(arm: ComparedArm) -> tuple[int, str] | None:
    """Which rows an arm was scored on: dataset version and split; rows of another one are other rows."""
    found = next(iter(arm.evaluations().values()), None)
    return (found.dataset_version_id, found.split) if found else None


def metrics_of(reference: ComparedArm, scored: Sequence[ComparedArm]) -> list[str]:
    """Metrics that every arm on the reference's rows has, in the order that people read them."""
    place = place_of(reference)
    found = [
        set(one.metrics) for arm in scored if place_of(arm) == place for one in arm.evaluations().values()
    ]
    shared = set.intersection(*found) if found else set()
    return [name for name in COMPARED_BY if name in shared]


def base_evaluations(reference: ComparedArm, arms: Sequence[ComparedArm]) -> dict[str, Evaluation]:
    """The base models' own scores on the reference's rows, by their names: of these runs, or of any other."""
    place = place_of(reference)
    if place is None:
        return {}
    models = {arm.first.base_model_id: str(arm.first.base_model) for arm in arms if place_of(arm) == place}
    chosen = {run.pk for arm in arms for run in [*arm.runs, *arm.repeats]}
    ended = (
        Evaluation.objects.ended()
        .filter(
            project_id=reference.first.project_id,
            subject=Evaluation.Subject.BASE,
            base_model__in=models,
            dataset_version=place[0],
            split=place[1],
            rows__gt=0,
        )
        .only("pk", "run_id", "base_model_id")
    )
    found: dict[str, Evaluation] = {}
    for one in sorted(ended, key=lambda one: (one.run_id in chosen, one.pk)):
        found[models[one.base_model_id]] = one
    return found
