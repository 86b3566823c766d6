"""Where one arm did better than another: single held-out rows with what was asked, expected and answered."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from django.core.cache import cache
from django.db.models import Q

from dashboard.models.comparison import ComparedArm, Comparison
from dashboard.models.evaluation import Evaluation, EvaluationItem

ROWS_SHOWN = 20
# Whoever turns pages and filters rows does so within the hour; ten thousand rows take some 300 kB.
KEPT_SECONDS = 3600
ARM, REFERENCE, SAME = "arm", "reference", "same"


@dataclass(frozen=True)
class Duel:
    """One row: both arms' mean score over their seeds, and one answer of each."""

    row: int
    arm: float
    reference: float
    # Positive where the arm did better.
    gain: float
    answer: EvaluationItem | None = None
    other: EvaluationItem | None = None


@dataclass(frozen=True)
class DuelPage:
    """Some duels, how many there are of each outcome, and the pages around them."""

    duels: list[Duel]
    counts: dict[str, int]
    found: int
    number: int
    pages: int


def duels_of(comparison: Comparison, arm: ComparedArm) -> list[Duel]:
    """Every row that both were scored on, the largest differences first."""
    sides = [arm.evaluations(), comparison.reference.evaluations()]
    numbers = [sorted(one.pk for one in by_seed.values()) for by_seed in sides]
    key = f"duels-{comparison.metric}-" + hashlib.sha256(repr(numbers).encode()).hexdigest()
    scores = cache.get(key)
    if scores is None:
        scores = _scores(comparison.metric, sides)
        cache.set(key, scores, KEPT_SECONDS)
    sign = -1.0 if comparison.lower_is_better else 1.0
    duels = [Duel(row, own, other, sign * (own - other)) for row, own, other in scores]
    return sorted(duels, key=lambda duel: (-abs(duel.gain), duel.row))


def _scores(metric: str, sides: Sequence[dict[int, Evaluation]]) -> list[tuple[int, float, float]]:
    """(row, mean score of the arm, mean score of the reference) over their seeds; one query."""
    wanted = {one.pk: side for side, by_seed in enumerate(sides) for one in by_seed.values()}
    scores: list[dict[int, list[float]]] = [{}, {}]
    items = EvaluationItem.objects.filter(evaluation__in=wanted).order_by()
    for pk, row, found in items.values_list("evaluation_id", "row", "scores").iterator():
        if metric in found:
            scores[wanted[pk]].setdefault(row, []).append(float(found[metric]))
    arm, reference = scores
    return [(row, fmean(arm[row]), fmean(reference[row])) for row in arm.keys() & reference.keys()]


def page_of(
    comparison: Comparison, arm: ComparedArm, *, won: str = "", words: str = "", number: int = 1
) -> DuelPage:
    """The duels that `won` and `words` leave, page by page, with the answers of each arm's first seed."""
    duels = duels_of(comparison, arm)
    counts = {name: sum(winner(duel) == name for duel in duels) for name in (ARM, REFERENCE, SAME)}
    if won in counts:
        duels = [duel for duel in duels if winner(duel) == won]
    first, other = (_first(one) for one in (arm, comparison.reference))
    if words:
        said = Q(prompt__icontains=words) | Q(expected__icontains=words) | Q(output__icontains=words)
        rows = EvaluationItem.objects.filter(said, evaluation__in=[first, other])
        matching = set(rows.order_by().values_list("row", flat=True))
        duels = [duel for duel in duels if duel.row in matching]
    pages = max(1, math.ceil(len(duels) / ROWS_SHOWN))
    number = min(max(1, number), pages)
    shown = duels[(number - 1) * ROWS_SHOWN : number * ROWS_SHOWN]
    items = EvaluationItem.objects.filter(evaluation__in=[first, other], row__in=[duel.row for duel in shown])
    by_place = {(item.evaluation_id, item.row): item for item in items}
    told = [
        Duel(
            duel.row,
            duel.arm,
            duel.reference,
            duel.gain,
            by_place.get((first, duel.row)),
            by_place.get((other, duel.row)),
        )
        for duel in shown
    ]
    return DuelPage(told, counts, len(duels), number, pages)


def winner(duel: Duel) -> str:
    """Which side did better on a row."""
    return SAME if duel.gain == 0 else ARM if duel.gain > 0 else REFERENCE


def _first(arm: ComparedArm) -> int:
    return next(one.pk for _seed, one in sorted(arm.evaluations().items()))
