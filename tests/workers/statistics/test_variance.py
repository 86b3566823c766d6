"""Variances of seeds, items and contrasts against closed formulas, least squares and arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.workers.statistics.scores import constant_scores, model_of, simulate_scores
from workers.statistics.variance import Sample, ScoreModel, Scores, _fit

BY_HAND = [[0.70, 0.74], [0.60, 0.60], [0.65, 0.67]]
STEADY = [[0.70, 0.71, 0.70, 0.69, 0.70], [0.60, 0.60, 0.61, 0.60, 0.61], [0.66, 0.65, 0.65, 0.66, 0.65]]


def cells_of(means: list[list[float]]) -> list[tuple[int, int, float]]:
    return [(arm, seed, mean) for arm, row in enumerate(means) for seed, mean in enumerate(row)]


def two_way_residuals(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return m_as - m_a. - m_.s + m_.. of means [arms, seeds]."""
    rest: NDArray[np.float64] = (
        means - means.mean(axis=1, keepdims=True) - means.mean(axis=0, keepdims=True) + means.mean()
    )
    return rest


# Seeds


def test_variance_of_seeds_by_hand() -> None:
    fit = _fit(cells_of(BY_HAND))
    assert fit.residuals == pytest.approx([-0.01, 0.01, 0.01, -0.01, 0, 0])
    assert fit.freedom == 2
    assert fit.variance == pytest.approx(0.0002)
    assert fit.own_variances({0, 1, 2})[0] == pytest.approx(0.0004)
    # Two arms with two seeds each: 2 * 0.0002 / 2.
    contrast = ScoreModel(constant_scores(BY_HAND)).contrast({0: 1.0, 1: -1.0})
    assert contrast.mean == pytest.approx(0.12)
    assert contrast.seed_variance == pytest.approx(0.0002)


def test_balanced_study_follows_the_closed_formulas() -> None:
    scores = simulate_scores(
        np.random.default_rng(3), seeds=3, items=30, spread=0.1, shifts=(0, 0, 0.1, -0.1)
    )
    arms, seeds, items = scores.shape
    means = scores.mean(axis=2)
    residuals = two_way_residuals(means)
    pooled = sum(residuals[a, s] ** 2 for a in range(arms) for s in range(seeds)) / ((arms - 1) * (seeds - 1))
    own = [
        (sum(residuals[a, s] ** 2 for s in range(seeds)) / (seeds - 1) - pooled / arms) / (1 - 2 / arms)
        for a in range(arms)
    ]
    flips = [
        sum(
            (scores[a, s, i] - scores[a, :, i].mean() - means[a, s] + means[a].mean()) ** 2
            for s in range(seeds)
            for i in range(items)
        )
        / ((seeds - 1) * (items - 1) * items)
        for a in range(arms)
    ]
    item = [scores[2, :, i].mean() - scores[0, :, i].mean() for i in range(items)]
    by_items = sum((z - np.mean(item)) ** 2 for z in item) / (items * (items - 1)) + 2 / items**2
    variance = by_items + (2 * pooled - flips[2] - flips[0]) / seeds
    freedom = variance**2 / (
        by_items**2 / (items - 1) + (2 * pooled / seeds) ** 2 / ((arms - 1) * (seeds - 1))
    )

    model = model_of(scores)
    contrast = model.contrast({2: 1.0, 0: -1.0})
    fit = _fit(cells_of(means.tolist()))
    assert model.unsteady == []
    assert 2 * pooled > flips[2] + flips[0], "the seeds add to the items' variance"
    assert fit.variance == pytest.approx(pooled)
    assert list(fit.own_variances(set(range(arms))).values()) == pytest.approx(np.maximum(own, 0))
    assert contrast.mean == pytest.approx(np.mean(item))
    assert contrast.item_variance == pytest.approx(by_items)
    assert contrast.flip_variance == pytest.approx((flips[2] + flips[0]) / seeds)
    assert contrast.variance == pytest.approx(variance)
    assert contrast.freedom == pytest.approx(freedom)


def test_seeds_never_lower_the_variance_of_items() -> None:
    """Flips that happen to cancel make the means agree more than independent items would."""
    even = np.tile([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], 20)
    contrast = model_of(np.stack([even, even[:, ::-1], np.ones_like(even)])).contrast({0: 1.0, 1: -1.0})
    assert contrast.flip_variance > 0
    assert contrast.seed_variance == pytest.approx(0, abs=1e-20)


def test_freedom_is_never_below_that_of_the_seeds() -> None:
    """Of the same answers nothing differs, while the seeds of both do."""
    scores = simulate_scores(np.random.default_rng(8), seeds=3, items=200, spread=0.0)
    contrast = model_of(scores[[0, 0]], is_share=False).contrast({0: 1.0, 1: -1.0})
    assert contrast.variance < 1e-3
    assert contrast.freedom == 2


def test_missing_seeds_are_fitted_by_least_squares() -> None:
    random = np.random.default_rng(5)
    seeds_of = {0: (1, 2, 3, 4), 1: (1, 2, 3, 4), 2: (1, 3, 4), 3: (2, 3)}
    samples = {
        arm: Sample(seeds, np.tile(random.random((len(seeds), 1)), 50)) for arm, seeds in seeds_of.items()
    }
    cells = [
        (arm, seed, samples[arm].means[place])
        for arm, own in seeds_of.items()
        for place, seed in enumerate(own)
    ]
    design = np.array(
        [[arm == a for a in range(4)] + [seed == s for s in range(1, 5)] for arm, seed, _m in cells]
    )
    values = np.array([mean for _arm, _seed, mean in cells])
    residuals = values - design @ np.linalg.lstsq(design.astype(float), values, rcond=None)[0]
    freedom = len(cells) - 4 - 4 + 1
    pooled = (residuals**2).sum() / freedom

    model = ScoreModel(samples)
    contrast = model.contrast({2: 1.0, 0: -1.0}, seeds=(1, 3, 4))
    assert model.unsteady == []
    assert _fit(cells).freedom == freedom == 6
    assert contrast.seed_variance == pytest.approx(2 * pooled / 3)
    # One arm over its own two seeds, the other over its four.
    assert model.contrast({3: 1.0, 0: -1.0}).seed_variance == pytest.approx(pooled * (1 / 2 + 1 / 4))


def test_what_a_seed_does_to_all_arms_cancels() -> None:
    """A common shift of a seed widens an arm's own interval, and no difference."""
    common = np.array([0.0, 0.1, -0.1, 0.05, -0.05])
    plain, shifted = (
        ScoreModel(constant_scores(STEADY)),
        ScoreModel(constant_scores((STEADY + common).tolist())),
    )
    weights = {0: 1.0, 1: -1.0}
    assert shifted.contrast(weights).variance == pytest.approx(plain.contrast(weights).variance)
    assert shifted.contrast({0: 1.0}).variance > 5 * plain.contrast({0: 1.0}).variance


def test_unsteady_arm_is_named_and_leaves_the_pool() -> None:
    means = np.array([*STEADY, [0.5, 0.9, 0.6, 0.7, 0.3]])
    residuals = two_way_residuals(means)
    of_all = (residuals**2).sum() / (3 * 4)
    own = ((residuals[3] ** 2).sum() / 4 - of_all / 4) / (1 - 2 / 4)
    others = (two_way_residuals(means[:3]) ** 2).sum() / (2 * 4)

    model = ScoreModel(constant_scores(means.tolist()), is_share=False)
    assert model.unsteady == [3]
    assert model.contrast({1: 1.0, 0: -1.0}).seed_variance == pytest.approx(2 * others / 5)
    wide = model.contrast({3: 1.0, 0: -1.0})
    assert wide.seed_variance == pytest.approx((own + others) / 5)
    parts = (own / 5) ** 2 / 4 + (others / 5) ** 2 / 8
    assert wide.freedom == pytest.approx(wide.variance**2 / parts)
    assert 4 < wide.freedom < 5
    assert model.contrast({3: 1.0}).seed_variance == pytest.approx(means[3].var(ddof=1) / 5)


def test_slightly_unsteady_arm_stays_in_the_pool() -> None:
    means = np.array([*STEADY, [0.70, 0.736, 0.688, 0.70, 0.676]])
    of_all = (two_way_residuals(means) ** 2).sum() / (3 * 4)
    model = ScoreModel(constant_scores(means.tolist()), is_share=False)
    assert model.unsteady == [3]
    assert model.contrast({1: 1.0, 0: -1.0}).seed_variance == pytest.approx(2 * of_all / 5)


def test_rounding_errors_and_single_flips_make_no_arm_unsteady() -> None:
    """Anything at all is infinitely more than other means that are the same for each seed."""
    for value in (1.0, 0.9, 1 / 3, 17.123):
        assert model_of(np.full((6, 5, 50), value)).unsteady == []
    almost = np.ones((4, 3, 200))
    almost[2, 1, 7] = 0.0
    assert model_of(almost).unsteady == []


def test_equally_steady_arms_are_rarely_called_unsteady() -> None:
    random = np.random.default_rng(7)
    named = sum(
        bool(ScoreModel(constant_scores(random.normal(0.5, 0.02, size=(5, 4)).tolist(), items=1)).unsteady)
        for _study in range(200)
    )
    assert named <= 32, "10 % of 200 studies, and three standard errors"


# Items


def test_groups_of_one_row_are_rows() -> None:
    scores = simulate_scores(np.random.default_rng(16), seeds=3, items=80, spread=0.02)
    weights = {1: 1.0, 0: -1.0}
    assert model_of(scores, list(range(80))).contrast(weights) == model_of(scores).contrast(weights)


def test_documents_count_instead_of_their_rows() -> None:
    """Ten copies of each row say no more than the row."""
    scores = simulate_scores(np.random.default_rng(2), seeds=3, items=40, spread=0.02)
    weights = {1: 1.0, 0: -1.0}
    once = model_of(scores).contrast(weights)
    copied = model_of(scores.repeat(10, axis=2), np.arange(40).repeat(10).tolist()).contrast(weights)
    assert copied.variance == pytest.approx(once.variance)
    assert copied.flip_variance == pytest.approx(once.flip_variance)
    assert copied.freedom == pytest.approx(once.freedom)


def documents_of_many_sizes(count: int) -> tuple[Scores, list[int]]:
    """Return one seed's scores and their documents, of which each has its own level."""
    random = np.random.default_rng(17)
    clusters = np.repeat(np.arange(count), random.geometric(0.2, size=count))
    scores = random.normal(size=count)[clusters] + random.normal(size=len(clusters))
    return scores[np.newaxis], clusters.tolist()


def test_documents_have_the_variance_of_cochrans_ratio() -> None:
    scores, clusters = documents_of_many_sizes(60)
    found = ScoreModel({0: Sample((1,), scores)}, clusters, is_share=False).contrast({0: 1.0})
    sizes, totals = np.bincount(clusters), np.bincount(clusters, scores[0])
    ratio = totals.sum() / sizes.sum()
    # Cochran, Sampling Techniques, 1977, formula 6.12 without the finite population.
    variance = ((totals - ratio * sizes) ** 2).sum() / 59 / (60 * sizes.mean() ** 2)
    assert found.item_variance == pytest.approx(variance)
    assert found.freedom == 59


def test_formula_is_the_limit_of_the_bootstrap_over_documents() -> None:
    scores, clusters = documents_of_many_sizes(400)
    sizes, totals = np.bincount(clusters), np.bincount(clusters, scores[0])
    drawn = np.random.default_rng(1).multinomial(400, np.full(400, 1 / 400), size=4000)
    spread = (drawn @ totals / (drawn @ sizes)).var()
    found = ScoreModel({0: Sample((1,), scores)}, clusters, is_share=False).contrast({0: 1.0})
    assert found.item_variance == pytest.approx(spread, rel=0.1)


def test_shares_near_0_and_1_keep_a_variance() -> None:
    """All right, all wrong: of the next items some will not be. A loss has no such end."""
    for value in (0.0, 1.0):
        same = np.full((3, 3, 50), value)
        assert model_of(same).contrast({1: 1.0, 0: -1.0}).variance == pytest.approx(2 / 50**2)
        assert model_of(same, is_share=False).contrast({1: 1.0, 0: -1.0}).variance == pytest.approx(
            0, abs=1e-20
        )


def test_one_group_or_one_item_has_a_variance() -> None:
    scores = simulate_scores(np.random.default_rng(4), seeds=3, items=30, spread=0.02)
    for model in (model_of(scores, [0] * 30), model_of(scores[:, :, :1])):
        contrast = model.contrast({1: 1.0, 0: -1.0})
        assert contrast.item_variance == 2.0
        assert contrast.freedom >= 1


def test_one_seed_leaves_the_items_alone() -> None:
    scores = simulate_scores(np.random.default_rng(6), seeds=1, items=30, spread=0.02)
    contrast = model_of(scores).contrast({1: 1.0, 0: -1.0})
    assert contrast.seed_variance == contrast.flip_variance == pytest.approx(0, abs=1e-20)
    assert contrast.freedom == 29


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_score_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Sample((1, 2), np.array([[0.5, 0.5], [0.5, value]]))


def test_each_seed_needs_its_row_of_scores() -> None:
    with pytest.raises(ValueError, match="shape"):
        Sample((1, 2, 3), np.zeros((2, 10)))
