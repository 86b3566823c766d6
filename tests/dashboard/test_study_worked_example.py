"""Every number on a study's page, reckoned again from the downloaded scores by their description alone.

Twenty items, two arms, two seeds, written down by hand. Nothing of `workers.verdicts` is used here.
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
from tests.dashboard.studies import conclude, make_study
from tests.dashboard.test_api_studies import api, worked_example

__all__ = ["api"]
Matrix = NDArray[np.float64]
DRAWS = 10_000


@dataclass(frozen=True)
class Draws:
    """10,000 draws of items and of seeds, and how wide an interval around the mean has to be."""

    mean: float
    deviations: Matrix
    spread: float
    freedom: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        tail = (1 - level) / 2
        widen = self.spread / self.deviations.std() * t.ppf(1 - tail, self.freedom) / norm.ppf(1 - tail)
        low, high = np.quantile(self.deviations, [tail, 1 - tail])
        return self.mean + widen * low, self.mean + widen * high


def weights(seeds: int, items: int) -> tuple[Matrix, Matrix]:
    random = np.random.default_rng(0)
    of_items = random.multinomial(items, np.full(items, 1 / items), size=DRAWS) / items
    return of_items, random.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS) / seeds


def drawn(scores: Matrix) -> Draws:
    """Of scores or differences, as [seeds, items]."""
    count, items = scores.shape
    of_items, of_seeds = weights(count, items)
    item_variance = (of_items @ scores.mean(axis=0)).var()
    seed_variance = scores.mean(axis=1).var(ddof=1) / count if count > 1 else 0.0
    freedom = float(items - 1)
    if seed_variance:
        parts = item_variance**2 / (items - 1) + seed_variance**2 / (count - 1)
        freedom = (item_variance + seed_variance) ** 2 / parts
    deviations = ((of_items @ scores.T) * of_seeds).sum(axis=1) - scores.mean()
    return Draws(float(scores.mean()), deviations, float(np.sqrt(item_variance + seed_variance)), freedom)


def p_of(draws: Draws) -> float:
    """The smallest 1 - level at which the interval leaves out 0."""
    least, most = 1 / DRAWS, 1.0
    for _halving in range(30):
        middle = (least + most) / 2
        low, high = draws.interval(1 - middle)
        least, most = (least, middle) if low > 0 or high < 0 else (middle, most)
    return most


def matrices(found: dict[str, Any]) -> dict[str, Matrix]:
    """Arm -> its scores as [seeds, items], from the downloaded JSON."""
    by_arm: dict[str, dict[int, dict[int, float]]] = {}
    for one in found["scores"]:
        by_arm.setdefault(one["arm"], {}).setdefault(one["seed"] or 0, {})[one["item"]] = one["value"]
    return {
        arm: np.array([[values[item] for item in sorted(values)] for _seed, values in sorted(seeds.items())])
        for arm, seeds in by_arm.items()
    }


@pytest.fixture
def shown(
    client: Client, api: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> tuple[str, dict[str, Matrix]]:
    """The text of page and report, and the scores as they are downloaded."""
    study = conclude(make_study(project, dataset, base_model, seeds=[1, 2]), worked_example())
    client.force_login(vera)
    pages = [client.get(study.get_absolute_url()), client.get(reverse("study-report", args=[study.pk]))]
    text = " ".join(page.content.decode() for page in pages)
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))
    return text, matrices(api.get(f"/api/v1/studies/{study.pk}/export").json())


def test_means_and_intervals_of_arms_and_base(shown: tuple[str, dict[str, Matrix]]) -> None:
    text, scores = shown
    for arm in ("efficient", "quality", "base"):
        found = drawn(scores[arm])
        # No share lies outside of 0 and 1.
        low, high = np.clip(found.interval(), 0, 1)
        assert f"{100 * found.mean:.1f} % ({100 * low:.1f} % – {100 * high:.1f} %)" in text, arm


def test_the_difference_its_interval_and_its_p(shown: tuple[str, dict[str, Matrix]]) -> None:
    text, scores = shown
    found = drawn(scores["efficient"] - scores["quality"])
    low, high = found.interval()
    cell = f"{100 * found.mean:+.1f} points 95 % interval {100 * low:+.1f} to {100 * high:+.1f}; p "
    # On the page and in the report.
    assert text.count(cell) == 2
    p = float(re.search(r"; p ([\d.]+)", text)[1])  # type: ignore[index]
    assert p == pytest.approx(p_of(found), abs=0.001)


def test_the_gain_over_the_base_that_is_kept(shown: tuple[str, dict[str, Matrix]]) -> None:
    text, scores = shown
    won, gained = scores["efficient"] - scores["base"], scores["quality"] - scores["base"]
    of_items, of_seeds = weights(*won.shape)
    ratios = ((of_items @ won.T) * of_seeds).sum(axis=1) / ((of_items @ gained.T) * of_seeds).sum(axis=1)
    mean = won.mean() / gained.mean()
    rest = drawn(won - mean * gained)
    widen = rest.spread / rest.deviations.std() * t.ppf(0.975, rest.freedom) / norm.ppf(0.975)
    low, high = mean + widen * (np.quantile(ratios, [0.025, 0.975]) - mean)
    assert f"{100 * mean:.0f} % ({100 * low:.0f} to {100 * high:.0f} %)" in text


def test_every_seed_stands_in_the_appendix(shown: tuple[str, dict[str, Matrix]]) -> None:
    text, scores = shown
    for arm in ("efficient", "quality"):
        assert f"{arm} " + " ".join(f"{100 * seed.mean():.1f} %" for seed in scores[arm]) in text
