"""Answers side by side: what two sides answered to the same held-out rows, row by row and page by page.

A side is what somebody wants to look at, as evaluations by seed: an arm, one seed of it, or the base model.
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

from dashboard.models.evaluation import Evaluation, EvaluationItem
from dashboard.models.judging import JUDGE

if TYPE_CHECKING:
    from dashboard.models.study import Study

BASE = "base"
MOST_LABELS = 12
# A label is short; whoever answers in sentences has no confusion to show.
LABEL_LETTERS = 40
# Whoever turns pages and filters rows does so within the hour; ten thousand rows take some 300 kB.
KEPT_SECONDS = 3600

# seed -> evaluation
Side = dict[int, Evaluation]


@dataclass(frozen=True)
class Pair:
    """One row: each side's mean score over its seeds, and the answer of its first seed where it is shown.

    `gap`: how much better the first side is, whichever way the metric points.
    """

    row: int
    one: float
    other: float
    gap: float
    answer: EvaluationItem | None = None
    counterpart: EvaluationItem | None = None


WON: dict[str, Callable[[Pair], bool]] = {
    "wins": lambda pair: pair.gap > 0,
    "losses": lambda pair: pair.gap < 0,
    "same": lambda pair: pair.gap == 0,
    "changed": lambda pair: pair.gap != 0,
}
# How rows are ordered -> words. A metric's good end is at its top, so a loss counts from below.
ORDERS = {
    "gap": gettext_lazy("largest differences first"),
    "high": gettext_lazy("where the first does well"),
    "low": gettext_lazy("where the first does badly"),
    "row": gettext_lazy("in the order of the rows"),
}


@dataclass(frozen=True)
class Asked:
    """What somebody wants to see: whose wins, which words, in which order, and the page of it."""

    show: str = ""
    words: str = ""
    order: str = "gap"
    page: int = 1


@dataclass(frozen=True)
class PairPage:
    """Some pairs, how many rows each side won, how many fit, and where among the pages this one lies."""

    pairs: list[Pair]
    counts: dict[str, int]
    found: int
    number: int
    pages: int

    @property
    def before(self) -> int:
        """The page before; 0 on the first."""
        return self.number - 1

    @property
    def after(self) -> int:
        """The page after; 0 on the last."""
        return self.number + 1 if self.number < self.pages else 0


def side_of(study: Study, subject: str, seed: int) -> Side:
    """A study's arm with a seed, or its base model, if its evaluation has ended; else nobody."""
    ended = Evaluation.objects.of_study(study).order_by("-pk")
    if subject == BASE:
        one = ended.filter(subject=Evaluation.Subject.BASE).first()
    else:
        of_arm = ended.filter(subject=Evaluation.Subject.ADAPTER, run__study_arm__name=subject)
        one = next((found for found in of_arm.select_related("run") if found.run.seed == seed), None)
    return {seed: one} if one else {}


def pairs_of(metric: str, one: Side, other: Side, *, lower_is_better: bool) -> list[Pair]:
    """Every row that both sides were scored on, by row and without the answers."""
    numbers = [sorted(evaluation.pk for evaluation in side.values()) for side in (one, other)]
    key = f"pairs-{metric}-" + hashlib.sha256(repr(numbers).encode()).hexdigest()
    # Scores of an ended evaluation never change, but those of the judge come later.
    is_kept = metric != JUDGE
    scores = cache.get(key) if is_kept else None
    if scores is None:
        scores = _scores(metric, one, other)
        if is_kept:
            cache.set(key, scores, KEPT_SECONDS)
    sign = -1.0 if lower_is_better else 1.0
    return [Pair(row, mine, theirs, sign * (mine - theirs)) for row, mine, theirs in scores]


def _scores(metric: str, one: Side, other: Side) -> list[tuple[int, float, float]]:
    """(row, mean score of the one, mean score of the other) over their seeds; one query."""
    sides = [{evaluation.pk for evaluation in side.values()} for side in (one, other)]
    found: list[dict[int, list[float]]] = [{}, {}]
    items = EvaluationItem.objects.filter(evaluation__in=sides[0] | sides[1]).order_by()
    for pk, row, scores in items.values_list("evaluation_id", "row", "scores").iterator():
        if metric in scores:
            for side, values in zip(sides, found, strict=True):
                if pk in side:
                    values.setdefault(row, []).append(float(scores[metric]))
    mine, theirs = found
    return [(row, fmean(mine[row]), fmean(theirs[row])) for row in sorted(mine.keys() & theirs.keys())]


def page_of(
    pairs: Sequence[Pair], one: Side, other: Side, asked: Asked, *, size: int, lower_is_better: bool
) -> PairPage:
    """The pairs that are asked for, with both sides' answers."""
    counts = {name: sum(test(pair) for pair in pairs) for name, test in WON.items()}
    kept = [pair for pair in pairs if asked.show not in WON or WON[asked.show](pair)]
    if asked.words:
        rows = _rows_with(asked.words.casefold(), one, other)
        kept = [pair for pair in kept if pair.row in rows]
    kept.sort(key=_order(asked.order, -1.0 if lower_is_better else 1.0))
    pages = max(1, math.ceil(len(kept) / size))
    number = min(max(1, asked.page), pages)
    shown = with_answers(kept[(number - 1) * size : number * size], one, other)
    return PairPage(shown, counts, len(kept), number, pages)


def _order(order: str, sign: float) -> Callable[[Pair], tuple[float, int]]:
    """What pairs are sorted by; the row decides between equal ones."""
    keys: dict[str, Callable[[Pair], float]] = {
        "gap": lambda pair: -abs(pair.gap),
        "high": lambda pair: -sign * pair.one,
        "low": lambda pair: sign * pair.one,
        "row": lambda _pair: 0.0,
    }
    key = keys.get(order, keys["gap"])
    return lambda pair: (key(pair), pair.row)


def _rows_with(words: str, one: Side, other: Side) -> set[int]:
    """Rows whose question, expected answer or shown answer holds the words, in any case."""
    items = EvaluationItem.objects.filter(evaluation__in=[*map(_first, (one, other))]).order_by()
    texts = items.values_list("row", "prompt", "expected", "output").iterator()
    return {row for row, *fields in texts if any(words in field.casefold() for field in fields)}


def with_answers(pairs: Sequence[Pair], one: Side, other: Side) -> list[Pair]:
    """The pairs with the answers of each side's first seed; two evaluations' items in one query."""
    first, second = _first(one), _first(other)
    items = EvaluationItem.objects.filter(
        evaluation__in=[first, second], row__in=[pair.row for pair in pairs]
    )
    known = {(item.evaluation_id, item.row): item for item in items}
    return [
        replace(pair, answer=known.get((first, pair.row)), counterpart=known.get((second, pair.row)))
        for pair in pairs
    ]


def _first(side: Side) -> int:
    return min((seed, evaluation.pk) for seed, evaluation in side.items())[1] if side else 0


def confusion(side: Side) -> tuple[list[str], list[tuple[str, list[int]]]] | None:
    """Labels, and for each of them how often it was answered by each; None where answers are no labels."""
    items = EvaluationItem.objects.filter(evaluation=_first(side)).order_by("row")
    return confused(list(items.values_list("expected", "output")))


def confused(answers: Sequence[tuple[str, str]]) -> tuple[list[str], list[tuple[str, list[int]]]] | None:
    """The same of (expected, answered). The most frequent labels; the last count is of every other answer."""
    expected = Counter(wanted.strip() for wanted, _answer in answers)
    if len(expected) < 2 or len(expected) * 2 > len(answers):
        return None
    if any(len(label) > LABEL_LETTERS for label in expected):
        return None
    labels = [label for label, _count in expected.most_common(MOST_LABELS)]
    counts: Counter[Any] = Counter((wanted.strip(), answer.strip()) for wanted, answer in answers)
    rows = []
    for label in labels:
        found = [counts[label, answer] for answer in labels]
        rows.append((label, [*found, expected[label] - sum(found)]))
    return labels, rows
