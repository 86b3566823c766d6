"""Verdicts of a study that is looked at several times: what stands, and what is decided again."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from tests.workers.statistics.scores import constant_scores, model_of, samples_of, simulate_scores
from tests.workers.statistics.test_verdicts import judge_means, outcomes
from workers.statistics.variance import ScoreModel
from workers.statistics.verdicts import (
    BETTER,
    INFERIOR,
    NOT_ENOUGH_EVIDENCE,
    NOT_INFERIOR,
    Verdict,
    compare,
    compare_arms,
    holm,
)


def test_decision_of_an_earlier_look_stands() -> None:
    """After three seeds the arm is certainly worse; the next two would make it look equal."""
    reference = [0.70, 0.71, 0.69, 0.70, 0.70]
    found = judge_means([reference, [0.50, 0.51, 0.50, 1.0, 1.0], reference])[1]
    assert (found.outcome, found.difference.look, found.difference.seeds) == (INFERIOR, 1, (0, 1, 2))
    assert found.is_final
    assert found.needs_no_seeds


def test_arm_as_good_stays_so_whatever_later_seeds_show() -> None:
    found = judge_means([[0.5] * 5, [0.51, 0.52, 0.53, 0.30, 0.30]])[1]
    assert (found.outcome, found.difference.look) == (NOT_INFERIOR, 1)


def test_arm_as_good_may_turn_out_better() -> None:
    first = judge_means([[0.5] * 3, [0.51, 0.52, 0.53]])[1]
    assert first.outcome == NOT_INFERIOR
    assert not first.is_final
    assert not first.needs_no_seeds, "it is ahead"
    later = judge_means([[0.5] * 5, [0.51, 0.52, 0.53, 0.52, 0.52]])[1]
    assert (later.outcome, later.difference.look, later.is_final) == (BETTER, 2, True)


def test_arm_as_good_and_not_ahead_needs_no_seeds() -> None:
    found = judge_means([[0.5] * 3, [0.49, 0.49, 0.48]])[1]
    assert (found.outcome, found.is_final, found.needs_no_seeds) == (NOT_INFERIOR, False, True)


def test_decided_arms_stay_in_both_families() -> None:
    """After a first look with one arm better, one as good and one inferior, the fourth is still open."""
    means = [
        [0.70, 0.71, 0.69, 0.70, 0.70],
        [0.80, 0.81, 0.79, 0.70, 0.70],
        [0.69, 0.71, 0.69, 0.60, 0.60],
        [0.50, 0.51, 0.49, 0.70, 0.70],
        [0.69, 0.64, 0.66, 0.69, 0.66],
    ]
    first = judge_means([row[:3] for row in means])
    assert outcomes(first) == {1: BETTER, 2: NOT_INFERIOR, 3: INFERIOR, 4: NOT_ENOUGH_EVIDENCE}
    found = judge_means(means)
    assert outcomes(found) == outcomes(first)
    open_arm, model = found[4], ScoreModel(constant_scores(means), is_share=False)
    as_good, still_open = compare(model, 2, 0), compare(model, 4, 0)
    assert as_good
    assert still_open
    # Rejected before: 0. Inferior, so never to be rejected: 1.
    assert open_arm.p_adjusted == pytest.approx(holm([0.0, as_good.p, 1.0, still_open.p])[3])
    assert open_arm.p_margin_adjusted == pytest.approx(2 * still_open.p_above(-0.05))


def test_open_arm_is_judged_again_at_the_level_of_each_look() -> None:
    random = np.random.default_rng(14)
    scores = simulate_scores(random, seeds=7, items=200, spread=0.03)
    found = compare_arms(samples_of(scores), 0, 0.001)
    assert set(outcomes(found).values()) == {NOT_ENOUGH_EVIDENCE}
    for arm, verdict in found.items():
        last = compare(model_of(scores), arm, 0)
        assert last
        variances = [model_of(scores[:, :size]).contrast({arm: 1.0, 0: -1.0}).variance for size in (3, 5, 7)]
        assert verdict.difference == replace(last, variances=tuple(variances))
        assert verdict.difference.alpha < 0.04


def test_arm_without_further_seeds_is_not_looked_at_again() -> None:
    samples = samples_of(simulate_scores(np.random.default_rng(15), seeds=5, items=100, spread=0.03))
    samples[1] = samples[1].of_seeds([0, 1, 2])
    found = compare_arms(samples, 0, 0.001)
    assert [found[arm].difference.look for arm in (1, 2)] == [1, 2]


def test_stopped_arm_keeps_the_verdict_of_its_look() -> None:
    """The reference's second seed is evaluated again after the look, with other scores."""
    first = judge_means([[0.70, 0.71, 0.69], [0.60, 0.61, 0.59]])[1]
    assert first.outcome == INFERIOR
    stored = json.loads(json.dumps(asdict(first)))
    samples = constant_scores([[0.70, 0.20, 0.69, 0.70, 0.70], [0.60, 0.61, 0.59]])
    assert compare_arms(samples, 0, 0.05, is_share=False)[1].outcome == NOT_ENOUGH_EVIDENCE
    kept = compare_arms(samples, 0, 0.05, is_share=False, stopped={1: Verdict.from_dict(stored)})[1]
    assert kept == first


def test_looks_follow_the_plan_and_not_the_seeds_that_the_reference_has() -> None:
    means = [[0.70, 0.71, 0.69, 0.70], [0.60, 0.61, 0.59, 0.60]]
    looks = [(9, 0, 1), (9, 0, 1, 2, 3)]
    found = compare_arms(constant_scores(means), 0, 0.05, is_share=False, looks=looks)[1]
    assert (found.outcome, found.difference.look, found.difference.seeds) == (INFERIOR, 2, (0, 1, 2, 3))
    assert compare_arms(constant_scores(means), 0, 0.05, is_share=False)[1].difference.look == 1


def test_look_before_the_reference_has_scores_is_left_out() -> None:
    means = [[0.70, 0.71, 0.69], [0.60, 0.61, 0.59]]
    found = compare_arms(
        constant_scores(means), 0, 0.05, is_share=False, looks=[(7, 8, 9), (7, 8, 9, 0, 1, 2)]
    )
    assert found[1].difference.look == 1


def test_chosen_runs_are_looked_at_once() -> None:
    means = [[0.70, 0.71, 0.69, 0.70, 0.70], [0.50, 0.51, 0.50, 1.0, 1.0], [0.70, 0.70, 0.71, 0.70, 0.69]]
    assert outcomes(judge_means(means))[1] == INFERIOR, "with a margin the first look decides"
    found = judge_means(means, margin=None)[1]
    assert (found.outcome, found.difference.seeds) == (NOT_ENOUGH_EVIDENCE, (0, 1, 2, 3, 4))
    scores = simulate_scores(np.random.default_rng(16), seeds=5, items=100, spread=0.03)
    found = compare_arms(samples_of(scores), 0, None)
    assert {(one.difference.variances, one.difference.alpha) for one in found.values()} == {((), 0.05)}


# Guessing
