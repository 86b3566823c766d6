"""The scores of single test rows behind a study's result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dashboard.models.evaluations.evaluation import Evaluation
from dashboard.models.evaluations.evaluation_item import EvaluationItem
from workers.statistics.variance import Scores

if TYPE_CHECKING:
    from dashboard.models.studies.study import Study

# Row -> score, and seed -> row -> score.
RowScores = Mapping[int, float]
SeedScores = Mapping[int, RowScores]


@dataclass(frozen=True)
class ArmScores:
    """The metric's value of every test row that an arm was scored on, by seed."""

    position: int
    name: str
    by_seed: SeedScores


def scores_of(study: Study) -> tuple[list[ArmScores], dict[int, float]]:
    """Return the metric's value of every row: of each arm by seed, and of the base model."""
    by_arm: dict[int, dict[int, dict[int, float]]] = {arm.pk: {} for arm in study.arms.all()}
    base: dict[int, float] = {}
    runs = {run.pk: run for run in study.final_runs()}
    counted = Evaluation.objects.of_study(study).order_by("pk")
    evaluations = list(counted.values_list("pk", "subject", "run_id"))
    values: dict[int, dict[int, float]] = {pk: {} for pk, _subject, _run in evaluations}
    items = EvaluationItem.objects.filter(evaluation__in=values)
    for evaluation_id, row, value in items.values_of(study.metric):
        values[evaluation_id][row] = value
    for pk, subject, run_id in evaluations:
        if subject == Evaluation.Subject.BASE:
            base = values[pk]
        elif values[pk] and (run := runs.get(run_id)) and run.study_arm_id:
            by_arm[run.study_arm_id][run.seed] = values[pk]
    # In the plan's order, in which looks take the seeds, and not in that of jobs.
    arms = [
        ArmScores(
            arm.position,
            arm.name,
            {seed: by_arm[arm.pk][seed] for seed in study.seeds if seed in by_arm[arm.pk]},
        )
        for arm in study.arms.all()
    ]
    return arms, base


def groups_of(study: Study) -> dict[int, int]:
    """Return row -> group, from the newest evaluation."""
    return EvaluationItem.objects.groups_of(Evaluation.objects.of_study(study).order_by("-pk").first())


def clusters_of(rows: Sequence[int], groups: Mapping[int, int]) -> list[int] | None:
    """Return the group of each row, for draws that take a group as a whole; None if no two rows share one."""
    clusters = [groups.get(row, row) for row in rows]
    return clusters if len(set(clusters)) < len(clusters) else None


def common_rows(arms: Sequence[ArmScores], bases: Sequence[RowScores]) -> list[int]:
    """Return the rows that all were scored on, so that every pair compares the same items."""
    sets = [set(scores) for arm in arms for scores in arm.by_seed.values()]
    sets += [set(base) for base in bases]
    return sorted(set.intersection(*sets)) if sets else []


def matrix(values: Sequence[RowScores], rows: Sequence[int]) -> Scores:
    """Return scores as an array of shape [seeds, rows]."""
    return np.array([[scores[row] for row in rows] for scores in values], dtype=np.float64)
