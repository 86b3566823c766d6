"""Scores for the tests of statistics: written by hand, or of simulated studies whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy

from workers.statistics.variance import Sample, ScoreModel, Scores

# Parts of an item's latent variance: shared by all arms, kept by an arm over its seeds, drawn by each seed.
SHARED, ARM, SEED = 0.905, 0.035, 0.06


def constant_scores(means: Sequence[Sequence[float]], items: int = 100) -> dict[int, Sample]:
    """Return arms whose items all score the mean of their seed; `means` of shape [arms, seeds]."""
    return {
        arm: Sample(tuple(range(len(row))), np.tile(np.array(row)[:, np.newaxis], items))
        for arm, row in enumerate(means)
    }


def model_of(scores: Scores, clusters: Sequence[int] | None = None, *, is_share: bool = True) -> ScoreModel:
    """Return the model of scores [arms, seeds, items]."""
    return ScoreModel(samples_of(scores), clusters, is_share=is_share)


def samples_of(scores: Scores) -> dict[int, Sample]:
    """Return the arms of scores [arms, seeds, items]."""
    return {arm: Sample(tuple(range(len(rows))), rows) for arm, rows in enumerate(scores)}


def simulate_scores(
    random: np.random.Generator,
    *,
    seeds: int,
    items: int,
    spread: float,
    shifts: Sequence[float] = (0.0,) * 6,
    accuracy: float = 0.5,
) -> Scores:
    """Return right-or-wrong scores [arms, seeds, items]; equal arms agree on 86 % of the items.

    `shifts`: each arm's true distance from `accuracy`. `spread`: standard deviation of a mean over seeds.
    """
    arms = len(shifts)
    difficulty = math.sqrt(SHARED) * random.normal(size=items)
    taste = math.sqrt(ARM) * random.normal(size=(arms, 1, items))
    noise = math.sqrt(SEED) * random.normal(size=(arms, seeds, items))
    means = accuracy + np.asarray(shifts)[:, np.newaxis] + spread * random.normal(size=(arms, seeds))
    limit = scipy.stats.norm.ppf(np.clip(means, 0.001, 0.999))[:, :, np.newaxis]
    right: Scores = (difficulty + taste + noise + limit > 0).astype(np.float64)
    return right
