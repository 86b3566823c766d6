"""Every number on a study's page, recomputed from the downloaded scores by their description alone.

Twenty items, two arms, two seeds, written down by hand. Uses nothing of `workers.statistics.verdicts`.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from django.test import Client
from django.urls import reverse
from numpy.typing import NDArray
from scipy.stats import norm, t

from dashboard.models import BaseModel, Dataset, Project, User
from tests.dashboard.studies.factories import conclude, make_study
from tests.dashboard.studies.test_api_studies import worked_example

Matrix = NDArray[np.float64]
DRAWS = 10_000


@dataclass(frozen=True)
class Draws:
    """10,000 bootstrap draws around a mean, with its standard error and degrees of freedom."""

    mean: float
    deviations: Matrix
    spread: float
    freedom: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        tail = (1 - level) / 2
        widen = self.spread / self.deviations.std() * t.ppf(1 - tail, self.freedom) / norm.ppf(1 - tail)
        low, high = np.quantile(self.deviations, [tail, 1 - tail])
        return self.mean + widen * low, self.mean + widen * high


def draw_weights(seeds: int, units: int) -> tuple[Matrix, Matrix]:
    """Return the draws' group counts [draws, groups] and seed shares [draws, seeds]."""
    random = np.random.default_rng(0)
    of_units = random.multinomial(units, np.full(units, 1 / units), size=DRAWS)
    return of_units, random.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS) / seeds


def means(scores: Matrix, groups: list[int], of_units: Matrix) -> Matrix:
    """Return the mean of each draw and seed: [draws, seeds]."""
    place = np.unique(groups, return_inverse=True)[1]
    sums = np.array([np.bincount(place, row) for row in scores])
    found: Matrix = (of_units @ sums.T) / (of_units @ np.bincount(place))[:, None]
    return found


def drawn(scores: Matrix, groups: list[int]) -> Draws:
    """Draw from scores or differences of shape [seeds, items]."""
    count, units = len(scores), len(set(groups))
    of_units, of_seeds = draw_weights(count, units)
    by_seed = means(scores, groups, of_units)
    item_variance = by_seed.mean(axis=1).var()
    seed_variance = scores.mean(axis=1).var(ddof=1) / count if count > 1 else 0.0
    freedom = float(units - 1)
    if seed_variance:
        parts = item_variance**2 / (units - 1) + seed_variance**2 / (count - 1)
        freedom = (item_variance + seed_variance) ** 2 / parts
    deviations = (by_seed * of_seeds).sum(axis=1) - scores.mean()
    return Draws(float(scores.mean()), deviations, float(np.sqrt(item_variance + seed_variance)), freedom)


def p_value(draws: Draws) -> float:
    """Return the smallest 1 - level at which the interval excludes 0."""
    least, most = 1 / DRAWS, 1.0
    for _halving in range(30):
        middle = (least + most) / 2
        low, high = draws.interval(1 - middle)
        least, most = (least, middle) if low > 0 or high < 0 else (middle, most)
    return most


def matrices(found: dict[str, Any]) -> dict[str, Matrix]:
    """Return arm -> scores [seeds, items] from the downloaded JSON."""
    by_arm: dict[str, dict[int, dict[int, float]]] = {}
    for one in found["scores"]:
        by_arm.setdefault(one["arm"], {}).setdefault(one["seed"] or 0, {})[one["item"]] = one["value"]
    return {
        arm: np.array([[values[item] for item in sorted(values)] for _seed, values in sorted(seeds.items())])
        for arm, seeds in by_arm.items()
    }


Shown = tuple[str, dict[str, Matrix], list[int]]
# Each item alone, as older evaluations have it; and five documents of two items beside ten of one.
ALONE: list[int] = []
DOCUMENTS = [1, 2, 3, 4, 5] * 2 + [*range(11, 21)]


@pytest.fixture(params=[ALONE, DOCUMENTS], ids=["alone", "documents"])
def shown(
    request: pytest.FixtureRequest,
    client: Client,
    api: Client,
    vera: User,
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
) -> Shown:
    """Return the text of page and report, and the downloaded scores and groups."""
    plan = make_study(project, dataset, base_model, seeds=[1, 2])
    study = conclude(plan, worked_example(), request.param)
    client.force_login(vera)
    pages = [client.get(study.get_absolute_url()), client.get(reverse("study-report", args=[study.pk]))]
    text = " ".join(page.content.decode() for page in pages)
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))
    found = api.get(f"/api/v1/studies/{study.pk}/export").json()
    groups = {one["item"]: one["group"] for one in found["scores"]}
    return text, matrices(found), [groups[item] for item in sorted(groups)]


def test_means_and_intervals_of_arms_and_base(shown: Shown) -> None:
    text, scores, groups = shown
    for arm in ("efficient", "quality", "base"):
        found = drawn(scores[arm], groups)
        # No share lies outside of 0 and 1.
        low, high = np.clip(found.interval(), 0, 1)
        assert f"{100 * found.mean:.1f} % ({100 * low:.1f} % – {100 * high:.1f} %)" in text, arm


def test_difference_interval_and_p_value(shown: Shown) -> None:
    text, scores, groups = shown
    found = drawn(scores["efficient"] - scores["quality"], groups)
    low, high = found.interval()
    cell = f"{100 * found.mean:+.1f} points 95 % interval {100 * low:+.1f} to {100 * high:+.1f}; p "
    # On the page and in the report.
    assert text.count(cell) == 2
    p = float(re.search(r"; p ([\d.]+)", text)[1])  # type: ignore[index]
    assert p == pytest.approx(p_value(found), abs=0.001)


def test_kept_gain(shown: Shown) -> None:
    text, scores, groups = shown
    won, gained = scores["efficient"] - scores["base"], scores["quality"] - scores["base"]
    of_units, of_seeds = draw_weights(len(won), len(set(groups)))
    drawn_won, drawn_gained = ((means(one, groups, of_units) * of_seeds).sum(axis=1) for one in (won, gained))
    ratios = drawn_won / drawn_gained
    mean = won.mean() / gained.mean()
    rest = drawn(won - mean * gained, groups)
    widen = rest.spread / rest.deviations.std() * t.ppf(0.975, rest.freedom) / norm.ppf(0.975)
    low, high = mean + widen * (np.quantile(ratios, [0.025, 0.975]) - mean)
    assert f"{100 * mean:.0f} % ({100 * low:.0f} to {100 * high:.0f} %)" in text


def test_number_of_groups_is_shown(shown: Shown) -> None:
    text, _scores, groups = shown
    independent = len(set(groups))
    assert independent in (15, 20)
    # On the page and in the report.
    assert text.count("20 items in 15 groups: rows of one group are drawn together.") == (
        2 if independent == 15 else 0
    )
    assert ("the bootstrap resamples whole groups" in text) == (independent == 15)


def test_appendix_shows_every_seed(shown: Shown) -> None:
    text, scores, _groups = shown
    for arm in ("efficient", "quality"):
        assert f"{arm} " + " ".join(f"{100 * seed.mean():.1f} %" for seed in scores[arm]) in text
