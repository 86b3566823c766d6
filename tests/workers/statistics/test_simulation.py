"""Verdicts of simulated studies whose truth is known: a sample, and as a proof all cells.

The proof prints one table of today's method and the earlier one. `SIMULATED_STUDIES` sets the number of
studies of a cell. A share misses its limit if it is beyond by three of its own standard errors.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.proof.simulated_studies import (
    MARGINS,
    POOLED,
    Cell,
    Promise,
    Result,
    Share,
    measure,
    measure_agreement,
    measure_all,
    measure_predictions,
    measure_promise,
    table_head,
)

STUDIES = int(os.environ.get("SIMULATED_STUDIES", "400"))
SAMPLED = 40
ERRORS = 3
COVERAGE, FALSE_BETTER, FALSE_GOOD = 0.94, 0.05, 0.07
POWER = (0.75, 0.85)


def is_below(share: Share, limit: float) -> bool:
    return share.mean + ERRORS * share.error < limit


def is_above(share: Share, limit: float) -> bool:
    return share.mean - ERRORS * share.error > limit


def missed_limits(result: Result) -> list[str]:
    """Return the shares that miss their limits."""
    limits = {
        f"coverage {result.coverage} %": is_below(result.coverage, COVERAGE),
        f'any false "better" {result.false_better} %': is_above(result.false_better, FALSE_BETTER),
        f'any false "as good" {result.false_good} %': is_above(result.false_good, FALSE_GOOD),
    }
    return [name for name, is_missed in limits.items() if is_missed]


def together(shares: list[Share]) -> Share:
    return Share(tuple(value for share in shares for value in share.values))


def test_equal_arms_agree_as_often_as_real_ones() -> None:
    """86 % was measured between adapters of one study."""
    assert measure_agreement() == pytest.approx(0.86, abs=0.01)


def test_sample_of_the_simulated_studies() -> None:
    result = measure(Cell(items=400, spread=0.015, seeds=5), POOLED, SAMPLED)
    assert missed_limits(result) == []
    assert result.decided[0.05].mean > 0.25, "equal arms are not all left open"


@pytest.mark.proof
def test_all_cells_keep_their_limits(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{table_head(STUDIES)}")
    missed, results = {}, []
    for cell, pooled, _earlier, line in measure_all(STUDIES):
        with capsys.disabled():
            print(line, flush=True)
        results.append(pooled)
        if found := missed_limits(pooled):
            missed[cell] = found
    assert missed == {}
    for shares in ([one.false_better for one in results], [one.false_good for one in results]):
        assert not is_above(together(shares), FALSE_BETTER), "over all cells"
    assert not is_below(together([one.coverage for one in results]), 0.95), "over all cells"


PLANS = [
    Cell(items=1000, spread=0.005, seeds=5),
    Cell(items=1000, spread=0.015, seeds=5),
    Cell(items=1000, spread=0.03, seeds=5),
    Cell(items=200, spread=0.015, seeds=3),
]


@pytest.mark.proof
@pytest.mark.parametrize("cell", PLANS, ids=str)
def test_plan_keeps_its_promises(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    found = measure_promise(cell, 2 * STUDIES)
    with capsys.disabled():
        print(f"\n{describe(found)}")
    assert not is_below(found.power, POWER[0])
    assert not is_above(found.power, POWER[1])
    for margin, share in found.as_good.items():
        assert not is_below(share, found.chances[margin] - 0.05), "promised too much"
        assert not is_above(share, found.chances[margin] + 0.15)


def describe(promise: Promise) -> str:
    chances = ", ".join(
        f"{promise.chances[margin]:.0%} promised and {promise.as_good[margin]} % measured at {margin:.0%}"
        for margin in MARGINS
    )
    return (
        f"{promise.cell}: {100 * promise.difference:.2f} points are seen in {promise.power} %;"
        f" equal arms as good: {chances}"
    )


@pytest.mark.proof
def test_chance_to_decide_is_calibrated(capsys: pytest.CaptureFixture[str]) -> None:
    """Further seeds that would decide with 80 % probability do so in 8 of 10 studies."""
    chances, decided = (np.array(values) for values in zip(*measure_predictions(STUDIES), strict=True))
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (chances >= low) & (chances < low + 0.2)
        assert inside.any(), "too few studies"
        share, said = Share(tuple(decided[inside].astype(float))), float(chances[inside].mean())
        with capsys.disabled():
            print(f"\nfurther seeds decide with {said:.0%}: {share} % of {inside.sum()} arms", end="")
        assert not is_below(share, said - 0.05), "promised too much"
        assert not is_above(share, said + 0.15)
