"""Pair the answers of two sides to the same rows of the test split, and filter, order and page the pairs.

A side is an arm, one seed of it, or the base model, as its evaluations by seed.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from django.core.cache import cache
from django.utils.translation import gettext_lazy

from dashboard.models.catalog.metrics import JUDGE
from dashboard.models.evaluations.evaluation import Evaluation
from dashboard.models.evaluations.evaluation_item import EvaluationItem

if TYPE_CHECKING:
    from dashboard.models.studies.study import Study

BASE = "base"
MOST_LABELS = 12
# Longer answers are text, for which a confusion matrix says nothing.
LABEL_LETTERS = 40
# Paging and filtering repeat within the hour; the scores of ten thousand rows take some 300 kB.
CACHE_SECONDS = 3600

# seed -> evaluation
Side = dict[int, Evaluation]


@dataclass(frozen=True)
class AnswerPair:
    """One row: each side's mean score over its seeds, and its first seed's answer once loaded.

    `gap` is positive where the first side is better, whichever way the metric points.
    """

    row: int
    first_score: float
    second_score: float
    gap: float
    first_answer: EvaluationItem | None = None
    second_answer: EvaluationItem | None = None


OUTCOMES: dict[str, Callable[[AnswerPair], bool]] = {
    "wins": lambda pair: pair.gap > 0,
    "losses": lambda pair: pair.gap < 0,
    "same": lambda pair: pair.gap == 0,
    "changed": lambda pair: pair.gap != 0,
}
ORDERS = {
    "gap": gettext_lazy("Largest difference first"),
    "high": gettext_lazy("Best answers of the first side first"),
    "low": gettext_lazy("Worst answers of the first side first"),
    "row": gettext_lazy("Row number"),
}


@dataclass(frozen=True)
class AnswerQuery:
    """A filter by outcome and text, an order, and a page number. An unknown outcome means all rows."""

    outcome: str = ""
    text: str = ""
    order: str = "gap"
    page: int = 1


@dataclass(frozen=True)
class AnswerPage:
    """One page of pairs, with the number of pairs per outcome (before filtering) and after filtering."""

    pairs: list[AnswerPair]
    counts: dict[str, int]
    total: int
    number: int
    pages: int

    @property
    def previous(self) -> int:
        """Return the number of the page before; 0 on the first."""
        return self.number - 1

    @property
    def next(self) -> int:
        """Return the number of the page after; 0 on the last."""
        return self.number + 1 if self.number < self.pages else 0


def study_side(study: Study, subject: str, seed: int) -> Side:
    """Return a study's arm at a seed, or its base model; empty without an ended evaluation."""
    ended = Evaluation.objects.of_study(study).order_by("-pk").select_related("run")
    if subject == BASE:
        evaluation = ended.filter(subject=Evaluation.Subject.BASE).first()
    else:
        arm = ended.filter(subject=Evaluation.Subject.ADAPTER, run__study_arm__name=subject)
        evaluation = next((candidate for candidate in arm if candidate.run.seed == seed), None)
    return {seed: evaluation} if evaluation else {}


def answer_pairs(metric: str, first: Side, second: Side, *, lower_is_better: bool) -> list[AnswerPair]:
    """Return every row that both sides have a score for, in order of rows, without the answers."""
    numbers = [sorted(evaluation.pk for evaluation in side.values()) for side in (first, second)]
    key = f"pairs-{metric}-" + hashlib.sha256(repr(numbers).encode()).hexdigest()
    # Scores of an ended evaluation never change, except those of a judge, which come later.
    is_cached = metric != JUDGE
    scores = cache.get(key) if is_cached else None
    if scores is None:
        scores = _mean_scores(metric, first, second)
        if is_cached:
            cache.set(key, scores, CACHE_SECONDS)
    sign = -1.0 if lower_is_better else 1.0
    return [AnswerPair(row, mine, theirs, sign * (mine - theirs)) for row, mine, theirs in scores]


def _mean_scores(metric: str, first: Side, second: Side) -> list[tuple[int, float, float]]:
    """Return (row, mean of the first, mean of the second) over the seeds of each side, by one query."""
    sides = [{evaluation.pk for evaluation in side.values()} for side in (first, second)]
    by_row: list[dict[int, list[float]]] = [{}, {}]
    items = EvaluationItem.objects.filter(evaluation__in=sides[0] | sides[1]).order_by()
    for pk, row, scores in items.values_list("evaluation_id", "row", "scores").iterator():
        if metric in scores:
            for side, values in zip(sides, by_row, strict=True):
                if pk in side:
                    values.setdefault(row, []).append(float(scores[metric]))
    mine, theirs = by_row
    return [(row, fmean(mine[row]), fmean(theirs[row])) for row in sorted(mine.keys() & theirs.keys())]


def answer_page(
    pairs: Sequence[AnswerPair],
    first: Side,
    second: Side,
    query: AnswerQuery,
    *,
    size: int,
    lower_is_better: bool,
) -> AnswerPage:
    """Return the page of pairs that a query selects, with the answers of both sides."""
    counts = {name: sum(map(matches, pairs)) for name, matches in OUTCOMES.items()}
    selected = [pair for pair in pairs if query.outcome not in OUTCOMES or OUTCOMES[query.outcome](pair)]
    if query.text:
        rows = _rows_containing(query.text.casefold(), first, second)
        selected = [pair for pair in selected if pair.row in rows]
    sign = -1.0 if lower_is_better else 1.0
    keys: dict[str, Callable[[AnswerPair], float]] = {
        "gap": lambda pair: -abs(pair.gap),
        "high": lambda pair: -sign * pair.first_score,
        "low": lambda pair: sign * pair.first_score,
        "row": lambda _pair: 0.0,
    }
    key = keys.get(query.order, keys["gap"])
    selected.sort(key=lambda pair: (key(pair), pair.row))
    pages = max(1, math.ceil(len(selected) / size))
    number = min(max(1, query.page), pages)
    page = load_answers(selected[(number - 1) * size : number * size], first, second)
    return AnswerPage(page, counts, len(selected), number, pages)


def _rows_containing(text: str, first: Side, second: Side) -> set[int]:
    """Return rows whose prompt, expected answer or answer contains the text, in any case."""
    items = EvaluationItem.objects.filter(evaluation__in=[*map(_first_seed, (first, second))]).order_by()
    texts = items.values_list("row", "prompt", "expected", "output").iterator()
    return {row for row, *fields in texts if any(text in field.casefold() for field in fields)}


def load_answers(pairs: Sequence[AnswerPair], first: Side, second: Side) -> list[AnswerPair]:
    """Return the pairs with the answers of each side's first seed, by one query."""
    evaluations = [_first_seed(first), _first_seed(second)]
    items = EvaluationItem.objects.filter(evaluation__in=evaluations, row__in=[pair.row for pair in pairs])
    answers = {(item.evaluation_id, item.row): item for item in items}
    return [
        replace(
            pair,
            first_answer=answers.get((evaluations[0], pair.row)),
            second_answer=answers.get((evaluations[1], pair.row)),
        )
        for pair in pairs
    ]


def _first_seed(side: Side) -> int:
    """Return the number of the evaluation with the lowest seed; 0 for an empty side."""
    return side[min(side)].pk if side else 0


# Labels, and for each of them the number of answers with each label; the last number is of other answers.
Confusions = tuple[list[str], list[tuple[str, list[int]]]]


def confusion_matrix(side: Side) -> Confusions | None:
    """Return the confusions of a side's first seed; None unless its expected answers are labels."""
    items = EvaluationItem.objects.filter(evaluation=_first_seed(side)).order_by("row")
    return count_confusions(list(items.values_list("expected", "output")))


def count_confusions(answers: Sequence[tuple[str, str]]) -> Confusions | None:
    """Return the confusions of (expected, answered) among the most frequent labels; None for free text."""
    expected = Counter(label.strip() for label, _answer in answers)
    if len(expected) < 2 or len(expected) * 2 > len(answers):
        return None
    if any(len(label) > LABEL_LETTERS for label in expected):
        return None
    labels = [label for label, _count in expected.most_common(MOST_LABELS)]
    counts: Counter[Any] = Counter((label.strip(), answer.strip()) for label, answer in answers)
    rows = []
    for label in labels:
        row_counts = [counts[label, answer] for answer in labels]
        rows.append((label, [*row_counts, expected[label] - sum(row_counts)]))
    return labels, rows
