"""A study row by row: what two of its subjects answered to the same rows, and which labels get mixed up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dashboard.models.evaluation import Evaluation, EvaluationItem
from dashboard.models.job_state import State

if TYPE_CHECKING:
    from dashboard.models.study import Study

BASE = "base"
MOST_LABELS = 12
# A label is short; whoever answers in sentences has no confusion to show.
LABEL_LETTERS = 40


@dataclass(frozen=True)
class Pair:
    """One test row with two subjects' answers. `gap`: how much better the first is, in the metric."""

    one: EvaluationItem
    other: EvaluationItem
    gap: float


def evaluation_of(study: Study, subject: str, seed: int) -> Evaluation | None:
    """The ended evaluation of an arm with a seed, or of the base model."""
    ended = Evaluation.objects.filter(
        run__study_arm__study=study, run__rung=None, job__state=State.SUCCEEDED
    ).order_by("-pk")
    if subject == BASE:
        return ended.filter(subject=Evaluation.Subject.BASE).first()
    of_arm = ended.filter(subject=Evaluation.Subject.ADAPTER, run__study_arm__name=subject)
    return next((one for one in of_arm.select_related("run") if one.run.seed == seed), None)


def pairs(study: Study, one: str, other: str, seed: int) -> list[Pair]:
    """Both answers to every row that both were scored on, in the order of the rows."""
    found = []
    for subject in (one, other):
        evaluation = evaluation_of(study, subject, seed)
        items = EvaluationItem.objects.filter(evaluation=evaluation) if evaluation else []
        found.append({item.row: item for item in items if study.metric in item.scores})
    sign = -1 if study.lower_is_better else 1
    first, second = found
    return [
        Pair(
            first[row],
            second[row],
            sign * (first[row].scores[study.metric] - second[row].scores[study.metric]),
        )
        for row in sorted(first.keys() & second.keys())
    ]


def confusion(items: list[EvaluationItem]) -> tuple[list[str], list[tuple[str, list[int]]]] | None:
    """Labels, and for each of them how often it was answered by each; None where answers are no labels.

    The most frequent ones; the last count is of every other answer.
    """
    expected = Counter(item.expected.strip() for item in items)
    if len(expected) < 2 or len(expected) * 2 > len(items):
        return None
    if any(len(label) > LABEL_LETTERS for label in expected):
        return None
    labels = [label for label, _count in expected.most_common(MOST_LABELS)]
    answers = Counter((item.expected.strip(), item.output.strip()) for item in items)
    rows = []
    for label in labels:
        counts = [answers[label, answer] for answer in labels]
        rows.append((label, [*counts, expected[label] - sum(counts)]))
    return labels, rows
