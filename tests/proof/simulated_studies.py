"""Simulated studies whose truth is known: how often today's method of verdicts and the earlier one are right.

Six arms answer right or wrong; their scores come from `tests.workers.statistics.scores`. A cell has so many
items, so much spread over seeds and so many seeds. Knows nothing of limits: the shares are held to them by
`tests/workers/statistics/test_simulation.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tests.proof import bootstrap_verdicts
from tests.workers.statistics.scores import model_of, samples_of, simulate_scores
from workers.statistics.looks import look_sizes
from workers.statistics.power import Design, chance_to_decide
from workers.statistics.variance import Sample, Scores
from workers.statistics.verdicts import (
    BETTER,
    DECIDED,
    NOT_ENOUGH_EVIDENCE,
    NOT_INFERIOR,
    Verdict,
    compare,
    compare_arms,
)

ARMS = 6
MARGINS = (0.05, 0.03, 0.02)
# The earlier method takes ten times as long, so it judges every fourth study.
EARLIER_EVERY = 4


@dataclass(frozen=True)
class Share:
    """A share with its standard error over studies; `values`: a number from 0 to 1 for each study."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def error(self) -> float:
        # If all studies agree, three errors are the rule of three.
        return max(float(np.std(self.values)) / math.sqrt(len(self.values)), 1 / len(self.values))

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f}"


@dataclass(frozen=True)
class Cell:
    """The size of a study and the standard deviation of an arm's mean over seeds."""

    items: int
    spread: float
    seeds: int

    def simulate(self, random: np.random.Generator, shift: float = 0.0) -> Scores:
        """Return scores of arms that are all `shift` away from the reference."""
        shifts = (0.0, *[shift] * (ARMS - 1))
        return simulate_scores(random, seeds=self.seeds, items=self.items, spread=self.spread, shifts=shifts)


CELLS = (
    *itertools.starmap(Cell, itertools.product((200, 400, 2000), (0.005, 0.015, 0.03), (3, 5))),
    *itertools.starmap(Cell, itertools.product((400,), (0.005, 0.015, 0.03), (9,))),
    Cell(2000, 0.015, 9),
)

Interval = tuple[float, float]


@dataclass(frozen=True)
class Method:
    """A method of verdicts: intervals of all seeds at 95 %, and the outcomes after all looks by margin."""

    intervals: Callable[[Scores], list[Interval]]
    decide: Callable[[Scores, tuple[float, ...]], dict[float, list[str]]]


def _pooled_intervals(scores: Scores) -> list[Interval]:
    model = model_of(scores)
    found = [compare(model, arm, 0) for arm in range(1, len(scores))]
    return [(one.low, one.high) for one in found if one]


def stop_when_decided(scores: Scores, margin: float) -> dict[int, Verdict]:
    """Return the verdicts of a study whose arms get no seeds after the look that decides them."""
    samples: dict[int, Sample] = {}
    verdicts: dict[int, Verdict] = {}
    stopped: dict[int, Verdict] = {}
    for size in look_sizes(scores.shape[1]):
        seen = samples_of(scores[:, :size])
        samples |= {arm: sample for arm, sample in seen.items() if arm not in stopped}
        verdicts = compare_arms(samples, 0, margin, stopped=stopped)
        stopped = {arm: verdict for arm, verdict in verdicts.items() if verdict.needs_no_seeds}
        if len(stopped) == len(samples) - 1:
            break
    return verdicts


def _pooled_outcomes(scores: Scores, margins: tuple[float, ...]) -> dict[float, list[str]]:
    return {
        margin: [verdict.outcome for verdict in stop_when_decided(scores, margin).values()]
        for margin in margins
    }


POOLED = Method(_pooled_intervals, _pooled_outcomes)
BOOTSTRAP = Method(
    lambda scores: [bootstrap_verdicts.compare(arm, scores[0]).interval() for arm in scores[1:]],
    bootstrap_verdicts.decide,
)


@dataclass(frozen=True)
class Result:
    """The shares of a method in a cell: of studies with equal arms, and with arms at the margin's edge."""

    coverage: Share
    half_width: float
    false_better: Share  # studies of equal arms with any arm "better"
    false_good: Share  # studies of arms at the margin's edge with any arm "as good"
    decided: dict[float, Share]  # equal arms, by margin

    def __str__(self) -> str:
        decided = " ".join(f"{share!s:>5}" for share in self.decided.values())
        return (
            f"{self.coverage!s:>5} {100 * self.half_width:5.2f} {self.false_better!s:>6}"
            f" {self.false_good!s:>6} {decided}"
        )


def measure(cell: Cell, method: Method, studies: int, seed: int = 1) -> Result:
    """Judge so many studies of a cell with equal arms, and as many with arms at the margin's edge."""
    random = np.random.default_rng(seed)
    edge = MARGINS[0]
    covered, widths, better, good = [], [], [], []
    decided: dict[float, list[float]] = {margin: [] for margin in MARGINS}
    for _study in range(studies):
        equal = cell.simulate(random)
        intervals = method.intervals(equal)
        covered.append(float(np.mean([low <= 0 <= high for low, high in intervals])))
        widths += [(high - low) / 2 for low, high in intervals]
        outcomes = method.decide(equal, MARGINS)
        better.append(float(BETTER in outcomes[edge]))
        for margin, found in outcomes.items():
            decided[margin].append(float(np.mean([outcome in DECIDED for outcome in found])))
        at_edge = method.decide(cell.simulate(random, -edge), (edge,))[edge]
        good.append(float(bool({BETTER, NOT_INFERIOR}.intersection(at_edge))))
    return Result(
        coverage=Share(tuple(covered)),
        half_width=float(np.median(widths)),
        false_better=Share(tuple(better)),
        false_good=Share(tuple(good)),
        decided={margin: Share(tuple(values)) for margin, values in decided.items()},
    )


def measure_all(studies: int) -> Iterator[tuple[Cell, Result, Result, str]]:
    """Yield each cell with the results of today's and the earlier method, and its line of the table."""
    for cell in CELLS:
        pooled = measure(cell, POOLED, studies)
        earlier = measure(cell, BOOTSTRAP, max(1, studies // EARLIER_EVERY))
        line = f"{cell.items:7} {100 * cell.spread:6.1f} {cell.seeds:5}  | {pooled} | {earlier}"
        yield cell, pooled, earlier, line


def table_head(studies: int) -> str:
    """Return the lines above the table."""
    names = f"{'cover':>5} {'half':>5} {'better':>6} {'good':>6} " + " ".join(
        f"{'m' + str(round(100 * margin)):>5}" for margin in MARGINS
    )
    return "\n".join(
        (
            f"{studies} studies of {ARMS} arms a cell, every {EARLIER_EVERY}th by the earlier method too. "
            f"Equal arms agree on {measure_agreement():.0%} of the items. In percent:",
            "cover: of 95 % intervals that contain the truth; half: their median half width, in points;",
            'better: of studies of equal arms, any false "better"; good: of arms 5 points worse, any false',
            '"as good" at the margin of 5; m5, m3, m2: of equal arms, decided at a margin of so many points.',
            f"{'':20}  | {'pooled, stop when decided':^{len(names)}} | {'earlier: bootstrap':^{len(names)}}",
            f"{'items spread seeds':>20}  | {names} | {names}",
        )
    )


def measure_agreement() -> float:
    """Return the share of items on which two seeds of equal arms agree."""
    scores = Cell(200_000, 0.0, 1).simulate(np.random.default_rng(2))
    return float(np.mean([(one == other).mean() for one, other in itertools.combinations(scores[:, 0], 2)]))


@dataclass(frozen=True)
class Promise:
    """A plan's promises, and the shares of its studies in which they came true."""

    cell: Cell
    difference: float
    power: Share
    chances: dict[float, float]
    as_good: dict[float, Share]


def measure_promise(cell: Cell, studies: int) -> Promise:
    """Judge studies of four equal arms and one that is ahead by the difference called detectable."""
    random = np.random.default_rng(3)
    difference = 0.03
    # Where arms differ by more they disagree on more items, so the difference is its own condition.
    for _step in range(4):
        pair = simulate_scores(
            random, seeds=cell.seeds, items=20_000, spread=0.0, shifts=(0.0, difference)
        ).mean(axis=1)
        design = Design(
            ARMS, cell.seeds, cell.items, cell.items, float((pair[1] - pair[0]).var()), cell.spread
        )
        difference = design.detectable_difference
    ahead: list[float] = []
    good: dict[float, list[float]] = {margin: [] for margin in MARGINS}
    shifts = (0.0, difference, *[0.0] * (ARMS - 2))
    for _study in range(studies):
        scores = simulate_scores(
            random, seeds=cell.seeds, items=cell.items, spread=cell.spread, shifts=shifts
        )
        outcomes = _pooled_outcomes(scores, MARGINS)
        ahead.append(float(outcomes[MARGINS[0]][0] == BETTER))
        for margin, (_ahead, *equal) in outcomes.items():
            good[margin].append(float(np.mean([one in {BETTER, NOT_INFERIOR} for one in equal])))
    return Promise(
        cell,
        difference,
        Share(tuple(ahead)),
        {margin: design.chance_if_equal(margin) for margin in MARGINS},
        {margin: Share(tuple(values)) for margin, values in good.items()},
    )


def measure_predictions(studies: int, margin: float = 0.03) -> list[tuple[float, bool]]:
    """Return, for open arms after three seeds, the chance that further seeds decide, and if they did."""
    random = np.random.default_rng(4)
    predictions = []
    for _study in range(studies):
        shifts = (0.0, *random.choice([0.0, 0.0, 0.02, -0.03, 0.04, -0.06], size=ARMS - 1))
        items, spread = int(random.choice([200, 1000, 2000])), float(random.choice([0.015, 0.03]))
        scores = simulate_scores(random, seeds=15, items=items, spread=spread, shifts=shifts)
        first = compare_arms(samples_of(scores[:, :3]), 0, margin)
        for seeds in (5, 9, 15):
            later = compare_arms(samples_of(scores[:, :seeds]), 0, margin)
            for arm, verdict in first.items():
                if verdict.outcome == NOT_ENOUGH_EVIDENCE:
                    chance = chance_to_decide(verdict.difference, margin, seeds - 3)
                    predictions.append((chance, later[arm].outcome in DECIDED))
    return predictions
