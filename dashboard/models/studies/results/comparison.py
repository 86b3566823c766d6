"""The unsaved study of the Compare page: chosen runs as arms, against a reference that the user picks.

Runs that differ only in the seed are one arm. No margin was fixed before the start, so no arm is called as
good as the reference. Results are cached: the scores of an ended evaluation never change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from django.core.cache import cache

from dashboard.models.catalog.metrics import COMPARABLE, JUDGE, is_lower_better, metric_label
from dashboard.models.evaluations.evaluation import Evaluation
from dashboard.models.evaluations.evaluation_item import EvaluationItem
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import State
from dashboard.models.studies.results.result import StudyResult, compute_result
from dashboard.models.studies.results.scores import ArmScores, common_rows
from dashboard.models.training.training_run import TrainingRun

CACHE_SECONDS = 30 * 24 * 3600
# Part of the cache's key: raise it when results are computed in another way.
CACHE_VERSION = 4


@dataclass(frozen=True)
class ChosenArm:
    """Runs with the same data, base model, target modules and settings: one for each seed."""

    position: int
    runs: list[TrainingRun] = field(default_factory=list)
    # The same settings and seed once more: they add no information, so they are shown and not counted.
    repeats: list[TrainingRun] = field(default_factory=list)

    def __str__(self) -> str:
        return self.name

    @property
    def first(self) -> TrainingRun:
        """Return the run that stands for the arm in links and settings."""
        return self.runs[0]

    @property
    def name(self) -> str:
        """Return the name shown on the page; the run's number tells runs of one name apart."""
        arm = self.first.study_arm
        return f"{arm.name if arm and len(self.runs) > 1 else self.first.name} #{self.first.pk}"

    @property
    def target_module_label(self) -> str:
        """Return the choice of target modules, unless the arm's name contains it."""
        label = str(self.first.target_module_config.name)
        return "" if label.lower() in self.name.lower() else label

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    def final_runs(self) -> list[TrainingRun]:
        """Return the runs whose scores count."""
        return self.runs

    def evaluations(self) -> dict[int, Evaluation]:
        """Return the newest ended evaluation of each run's adapter, by seed."""
        newest = {}
        for run in self.runs:
            for evaluation in sorted(run.evaluations.all(), key=lambda one: one.pk):
                ended = evaluation.state == State.SUCCEEDED
                if ended and evaluation.subject == Evaluation.Subject.ADAPTER and evaluation.rows:
                    newest[run.seed] = evaluation
        return newest


def arms_of(runs: Sequence[TrainingRun]) -> list[ChosenArm]:
    """Group the chosen runs into arms, in the order in which they were chosen."""
    arms: dict[str, ChosenArm] = {}
    for run in runs:
        settings = {name: value for name, value in run.hyperparameters.items() if name != "seed"}
        target = run.spec.get("target", {})
        rows = [run.dataset_version_id, run.validation_version_id]
        key = json.dumps([rows, run.base_model_id, target, settings], sort_keys=True)
        arm = arms.setdefault(key, ChosenArm(len(arms)))
        (arm.repeats if run.seed in arm.seeds else arm.runs).append(run)
    return list(arms.values())


@dataclass(frozen=True)
class UnsavedStudy:
    """Chosen runs as arms, with one metric and one reference."""

    arm_list: list[ChosenArm]
    reference_arm: ChosenArm
    metric: str
    metrics: list[str]
    base_evaluations: dict[str, Evaluation]  # by the base model's name
    margin: None = None

    @classmethod
    def of(cls, runs: Sequence[TrainingRun], metric: str = "", reference: str = "") -> UnsavedStudy:
        """Build it from one or more runs; an unknown metric or reference becomes the first with scores."""
        arms = arms_of(runs)
        scored = [arm for arm in arms if arm.evaluations()]
        picked = [arm for arm in arms if reference in {str(run.pk) for run in [*arm.runs, *arm.repeats]}]
        reference_arm = (picked or scored or arms)[0]
        metrics = metrics_of(reference_arm, scored)
        usual = reference_arm.first.dataset_version.main_metric
        if metric not in metrics:
            metric = usual if usual in metrics else next(iter(metrics), usual)
        return cls(arms, reference_arm, metric, metrics, base_evaluations(reference_arm, arms))

    @property
    def reference(self) -> str:
        return self.reference_arm.name

    @property
    def lower_is_better(self) -> bool:
        return is_lower_better(self.metric)

    @property
    def metric_label(self) -> str:
        return metric_label(self.metric)

    @cached_property
    def scored(self) -> list[ChosenArm]:
        """Return the arms that were scored on the reference's rows, and so can be compared with it."""
        rows = scored_rows_of(self.reference_arm)
        return [arm for arm in self.arm_list if rows and scored_rows_of(arm) == rows]

    @cached_property
    def scored_elsewhere(self) -> list[ChosenArm]:
        """Return the arms that were scored on other rows than the reference."""
        return [arm for arm in self.arm_list if arm not in self.scored and arm.evaluations()]

    @cached_property
    def result(self) -> StudyResult:
        """Return the result, from the cache if nothing has changed: the draws take seconds."""
        plan = [
            CACHE_VERSION,
            self.metric,
            self.reference,
            [
                [arm.name, sorted((seed, *scores_key(one)) for seed, one in arm.evaluations().items())]
                for arm in self.scored
            ],
            sorted((name, *scores_key(one)) for name, one in self.base_evaluations.items()),
        ]
        key = "comparison-" + hashlib.sha256(json.dumps(plan).encode()).hexdigest()
        stored = cache.get(key)
        if stored is None:
            stored = self._compute().to_dict()
            cache.set(key, stored, CACHE_SECONDS)
        return StudyResult.from_dict(stored)

    def _compute(self) -> StudyResult:
        arms, bases = self.scores()
        rows = common_rows(arms, [])
        if not rows:
            return StudyResult(metric=self.metric)
        return compute_result(
            arms,
            {name: scores for name, scores in bases.items() if scores.keys() >= set(rows)},
            rows,
            self.groups(),
            reference=self.reference_arm.position,
            metric=self.metric,
            margin=None,
        )

    @cached_property
    def judges(self) -> set[str]:
        """Return the judges whose verdicts are compared; none for other metrics."""
        if self.metric != JUDGE:
            return set()
        evaluations = [one for arm in self.scored for one in arm.evaluations().values()]
        judged = {one.pk for one in [*evaluations, *self.base_evaluations.values()]}
        jobs = Job.objects.filter(judged_evaluations__in=judged)
        return set(jobs.values_list("spec__judge", flat=True))

    def scores(self) -> tuple[list[ArmScores], dict[str, dict[int, float]]]:
        """Return the metric's value of every row, of each arm and of each base model, with one query."""
        evaluations = {arm.position: arm.evaluations() for arm in self.scored}
        wanted = [one.pk for by_seed in evaluations.values() for one in by_seed.values()]
        wanted += [one.pk for one in self.base_evaluations.values()]
        values: dict[int, dict[int, float]] = {pk: {} for pk in wanted}
        items = EvaluationItem.objects.filter(evaluation__in=wanted).order_by()
        for pk, row, value in items.values_of(self.metric):
            values[pk][row] = value
        arms = []
        for arm in self.scored:
            by_seed = sorted(evaluations[arm.position].items())
            scored = {seed: values[one.pk] for seed, one in by_seed if values[one.pk]}
            if scored:
                arms.append(ArmScores(arm.position, arm.name, scored))
        bases = {name: values[one.pk] for name, one in self.base_evaluations.items() if values[one.pk]}
        return arms, bases

    def groups(self) -> dict[int, int]:
        """Return row -> group, from the newest evaluation."""
        evaluations = [one for arm in self.scored for one in arm.evaluations().values()]
        newest = max(evaluations, key=lambda one: one.pk, default=None)
        return EvaluationItem.objects.groups_of(newest)


def scores_key(evaluation: Evaluation) -> tuple[Any, ...]:
    """Name the scores: an ended evaluation keeps its own, but a judge may add verdicts later."""
    return evaluation.pk, evaluation.judge_job_id, evaluation.metrics


def scored_rows_of(arm: ChosenArm) -> tuple[int, str] | None:
    """Return dataset version and split that an arm was scored on; other ones are other rows."""
    evaluation = next(iter(arm.evaluations().values()), None)
    return (evaluation.dataset_version_id, evaluation.split) if evaluation else None


def metrics_of(reference: ChosenArm, scored: Sequence[ChosenArm]) -> list[str]:
    """Return the metrics that every arm on the reference's rows has, in the registry's order."""
    rows = scored_rows_of(reference)
    measured = [
        set(one.metrics)
        for arm in scored
        if scored_rows_of(arm) == rows
        for one in arm.evaluations().values()
    ]
    shared = set.intersection(*measured) if measured else set()
    return [name for name in COMPARABLE if name in shared]


def base_evaluations(reference: ChosenArm, arms: Sequence[ChosenArm]) -> dict[str, Evaluation]:
    """Return the base models' evaluations on the reference's rows, those of the chosen runs before others."""
    rows = scored_rows_of(reference)
    if rows is None:
        return {}
    models = {
        arm.first.base_model_id: str(arm.first.base_model) for arm in arms if scored_rows_of(arm) == rows
    }
    chosen = {
        evaluation.base_evaluation_id
        for arm in arms
        for run in [*arm.runs, *arm.repeats]
        for evaluation in run.evaluations.all()
    }
    ended = (
        Evaluation.objects.ended()
        .filter(
            project_id=reference.first.project_id,
            subject=Evaluation.Subject.BASE,
            base_model__in=models,
            dataset_version=rows[0],
            split=rows[1],
            rows__gt=0,
        )
        .only("pk", "base_model_id")
    )
    by_name: dict[str, Evaluation] = {}
    for one in sorted(ended, key=lambda one: (one.pk in chosen, one.pk)):
        by_name[models[one.base_model_id]] = one
    return by_name
