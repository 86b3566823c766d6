"""Every number on a study's page, recomputed from the downloaded scores by their description alone.

Twenty items, three arms, three seeds, written down by hand. Uses nothing of `workers.statistics`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy
from django.test import Client
from django.urls import reverse
from numpy.typing import NDArray
from pytest_django.plugin import DjangoDbBlocker

from dashboard.models import Project, Role
from tests.conftest import make_base_model, make_dataset, make_user
from tests.dashboard.conftest import api_client, rolled_back
from tests.dashboard.studies.factories import Table, conclude, make_study

Matrix = NDArray[np.float64]
ARMS = ("efficient", "mlp", "quality")
TABLE: Table = {
    "base": {0: [1, 0, 0, 0, 0] * 4},
    "efficient": {1: [1, 1, 1, 0, 0] * 4, 2: [1, 1, 0, 0, 1] * 3 + [1, 1, 1, 0, 1], 3: [1, 1, 1, 0, 0] * 4},
    "mlp": {
        1: [1, 0, 1, 0, 0] * 4,
        2: [1, 1, 0, 0, 0] * 3 + [1, 1, 1, 0, 0],
        3: [1, 0, 1, 0, 0] * 3 + [1, 1, 1, 0, 0],
    },
    "quality": {
        1: [1, 1, 1, 1, 0] * 4,
        2: [1, 1, 1, 0, 1] * 3 + [1, 1, 1, 0, 0],
        3: [1, 1, 1, 1, 0] * 3 + [1, 1, 1, 1, 1],
    },
}
# The first of one planned look may make 4 of the 5 % of errors.
FIRST_LOOK = 0.04


def squares(residuals: Matrix, groups: list[int]) -> float:
    """Return the sum of squared group sums over n^2, times G / (G - 1)."""
    place = np.unique(groups, return_inverse=True)[1]
    count = place.max() + 1
    sums = np.array([np.bincount(place, row) for row in np.atleast_2d(residuals)])
    return float((sums**2).sum() / len(place) ** 2 * count / (count - 1))


def flips(scores: Matrix, groups: list[int]) -> float:
    rest = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
    return squares(rest, groups) / (len(scores) - 1)


def pooled(scores: dict[str, Matrix]) -> tuple[float, int]:
    """Return the variance of one seed's mean, estimated over all arms, and its degrees of freedom."""
    means = np.array([scores[arm].mean(axis=1) for arm in ARMS])
    rest = means - means.mean(axis=1, keepdims=True) - means.mean(axis=0) + means.mean()
    freedom = (means.shape[0] - 1) * (means.shape[1] - 1)
    return float((rest**2).sum() / freedom), freedom


def error_of_difference(
    scores: dict[str, Matrix], groups: list[int], share: float = 1.0
) -> tuple[float, float]:
    """Return standard error and degrees of freedom of efficient - share * quality - (1 - share) * base."""
    seeds = 3
    by_item = (scores["efficient"] - share * scores["quality"]).mean(axis=0) - (1 - share) * scores["base"][0]
    count = len(set(groups))
    items = squares(by_item - by_item.mean(), groups) + 2 / count**2
    variance, freedom = pooled(scores)
    weight = 1 + share**2
    net = weight * variance - flips(scores["efficient"], groups) - share**2 * flips(scores["quality"], groups)
    total = items + max(0.0, net) / seeds
    satterthwaite = total**2 / (items**2 / (count - 1) + (weight * variance / seeds) ** 2 / freedom)
    return float(np.sqrt(total)), max(satterthwaite, min(freedom, count - 1))


def matrices(found: dict[str, Any]) -> dict[str, Matrix]:
    """Return arm -> scores [seeds, items] from the downloaded JSON."""
    by_arm: dict[str, dict[int, dict[int, float]]] = {}
    for one in found["scores"]:
        by_arm.setdefault(one["arm"], {}).setdefault(one["seed"] or 0, {})[one["item"]] = one["value"]
    return {
        arm: np.array([[values[item] for item in sorted(values)] for _seed, values in sorted(seeds.items())])
        for arm, seeds in by_arm.items()
    }


# Each item alone, as older evaluations have it; and five documents of two items beside ten of one.
ALONE: list[int] = []
DOCUMENTS = [1, 2, 3, 4, 5] * 2 + [*range(11, 21)]
Shown = tuple[str, dict[str, Matrix], list[int]]


@pytest.fixture(scope="module", params=[ALONE, DOCUMENTS], ids=["alone", "documents"])
def shown(
    request: pytest.FixtureRequest, django_db_setup: None, django_db_blocker: DjangoDbBlocker
) -> Iterator[Shown]:
    """Yield the text of page and report, and the downloaded scores and groups."""
    with rolled_back(django_db_blocker):
        yield show(request.param)


def show(groups_of_rows: list[int]) -> Shown:
    project = Project.objects.named("Worked example")
    vera = make_user("v@example.org", project, Role.VIEWER)
    queued = make_study(project, make_dataset(project), make_base_model(project), slugs=ARMS)
    study = conclude(queued, TABLE, groups_of_rows)
    client, api = Client(), api_client(project, vera)
    client.force_login(vera)
    pages = [client.get(study.get_absolute_url()), client.get(reverse("study-report", args=[study.pk]))]
    text = " ".join(page.content.decode() for page in pages)
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))
    found = api.get(f"/api/v1/studies/{study.pk}/export").json()
    groups = {one["item"]: one["group"] for one in found["scores"]}
    return text, matrices(found), [groups[item] for item in sorted(groups)]


def test_means_and_intervals_of_base_and_arms(shown: Shown) -> None:
    text, scores, groups = shown
    count = len(set(groups))
    base = scores["base"][0]
    reach = scipy.stats.t.ppf(0.975, count - 1) * np.sqrt(squares(base - base.mean(), groups) + 2 / count**2)
    low, high = np.clip([base.mean() - reach, base.mean() + reach], 0, 1)
    assert f"{100 * base.mean():.1f} % ({100 * low:.1f} % – {100 * high:.1f} %)" in text
    for arm in ARMS:
        assert f"{100 * scores[arm].mean():.1f} % (" in text


def test_difference_interval_and_p_value(shown: Shown) -> None:
    text, scores, groups = shown
    mean = scores["efficient"].mean() - scores["quality"].mean()
    error, freedom = error_of_difference(scores, groups)
    reach = scipy.stats.t.ppf(1 - FIRST_LOOK / 2, freedom) * error
    low, high = 100 * (mean - reach), 100 * (mean + reach)
    interval = f"{100 * mean:+.1f} points 95 % interval {low:+.1f} to {high:+.1f}"
    # On the page and in the report.
    assert text.count(f"{interval}; p ") == 2
    p = float(re.search(re.escape(interval) + r"; p ([\d.]+)", text)[1])  # type: ignore[index]
    # Holm over two arms: the other arm's p-value is smaller, so this one stays as it is.
    assert p == pytest.approx(2 * scipy.stats.t.sf(abs(mean) / error, freedom), abs=0.0006)


def test_kept_gain_is_shown_where_its_interval_is_narrow(shown: Shown) -> None:
    text, scores, groups = shown
    gain = scores["quality"].mean() - scores["base"].mean()
    share = (scores["efficient"].mean() - scores["base"].mean()) / gain
    error, freedom = error_of_difference(scores, groups, share)
    width = 2 * scipy.stats.t.ppf(0.975, freedom) * error / gain
    assert (f"{100 * share * gain:.1f} of {100 * gain:.1f} points" in text) == (width < 0.5)


def test_number_of_groups_is_shown(shown: Shown) -> None:
    text, _scores, groups = shown
    independent = len(set(groups))
    assert independent in (15, 20)
    # On the page and in the report.
    assert text.count("20 items in 15 groups: rows of one group are drawn together.") == (
        2 if independent == 15 else 0
    )
    assert ("the variance is that of whole groups" in text) == (independent == 15)


def test_appendix_shows_every_seed(shown: Shown) -> None:
    text, scores, _groups = shown
    for arm in ARMS:
        assert f"{arm} " + " ".join(f"{100 * seed.mean():.1f} %" for seed in scores[arm]) in text
