"""Axes of figures: an interval that is far wider than the others is cut."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from django.test import Client

from dashboard.charts import axes, study_charts
from dashboard.charts.axes import Axis, Span, around_spans
from dashboard.models import BaseModel, Dataset, Project, Study, User
from tests.dashboard.studies.factories import Table, conclude, make_study

# Six arms of a study with two seeds; those of the fifth lay eight points apart.
SPREAD = [
    Span(0.613, 0.565, 0.660),
    Span(0.640, 0.594, 0.683),
    Span(0.646, 0.598, 0.693),
    Span(0.652, 0.583, 0.719),
    Span(0.685, 0.116, 1.000, (0.725, 0.645)),
    Span(0.692, 0.640, 0.743),
]


def test_axis_contains_points_and_usual_intervals() -> None:
    axis = around_spans(SPREAD)
    for one in SPREAD:
        assert not any(axis.is_outside(value) for value in (one.mean, *one.points))
    usual = [one for one in SPREAD if one.high - one.low < 0.2]
    assert len(usual) == 5
    assert not any(axis.is_outside(value) for one in usual for value in (one.low, one.high))


def test_cut_end_is_marked() -> None:
    found = around_spans(SPREAD).whisker(0.116, 0.7)
    assert (found["low"], found["is_low_cut"], found["is_high_cut"]) == ("0%", True, False)


@pytest.mark.parametrize(
    "spans",
    [
        [Span(0.5, 0.4, 0.6), Span(0.6, 0.45, 0.75)],
        [Span(0.5, 0.5, 0.5), Span(0.5, 0.5, 0.5)],
        [Span(0.5, 0.3, 0.7)],
    ],
)
def test_intervals_of_similar_width_are_not_cut(spans: list[Span]) -> None:
    axis = around_spans(spans)
    assert not any(axis.is_outside(value) for one in spans for value in (one.low, one.high))


def test_wider_of_two_intervals_is_cut() -> None:
    axis = around_spans([Span(0.5, 0.49, 0.51), Span(0.5, 0.1, 0.9)])
    assert axis.high - axis.low < 0.1


def test_axis_contains_zero_and_the_margin() -> None:
    found = [
        SimpleNamespace(position=0, difference=-0.008, low=-0.40, high=0.365),
        SimpleNamespace(position=1, difference=-0.08, low=-0.114, high=-0.047),
        SimpleNamespace(position=2, difference=-0.046, low=-0.071, high=-0.021),
    ]
    picture = axes.differences(found, margin=0.05)
    for name in ("zero", "margin"):
        assert axes.EDGE <= float(picture[name].rstrip("%")) <= 100 - axes.EDGE
    cut = {place: (row["is_low_cut"], row["is_high_cut"]) for place, row in picture["rows"].items()}
    assert cut == {0: (True, True), 1: (False, False), 2: (False, False)}


def test_rounding_error_is_not_cut() -> None:
    assert not Axis(0.1, 0.3).is_outside(0.1 + 0.2)


SEEDS = (1, 2, 3)
TABLE: Table = {
    "base": {0: [1] * 30 + [0] * 270},
    "efficient": {seed: [1] * (180 + seed) + [0] * (120 - seed) for seed in SEEDS},
    "balanced": {seed: [1] * (187 + seed) + [0] * (113 - seed) for seed in SEEDS},
    "mlp": {1: [1] * 225 + [0] * 75, 2: [1] * 120 + [0] * 180, 3: [1] * 180 + [0] * 120},
    "quality": {seed: [1] * (195 + seed) + [0] * (105 - seed) for seed in SEEDS},
}


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """The seeds of MLP lie up to 35 points apart, those of the others a third of one."""
    slugs = ("efficient", "balanced", "mlp", "quality")
    queued = make_study(project, dataset, base_model, by=ed, slugs=slugs, seeds=list(SEEDS))
    return conclude(queued, TABLE)


def test_page_shows_the_ends_of_cut_intervals(client: Client, vera: User, study: Study) -> None:
    rows = {row["name"]: row for row in study_charts.intervals(study)["rows"]}
    assert rows["mlp"]["is_low_cut"]
    assert rows["mlp"]["low_words"] in rows["mlp"]["words"], "the table keeps the full numbers"
    assert not rows["efficient"]["is_low_cut"]
    client.force_login(vera)
    for address in (study.get_absolute_url(), f"{study.get_absolute_url()}report/"):
        page = client.get(address).content.decode()
        assert "A line with an arrow continues to the number beside it" in page
        assert f'<text class="plot-end" x="14" y="33">{rows["mlp"]["low_words"]}</text>' in page
        assert (
            f"Arrows: the interval continues outside of the figure.\n      mlp {rows['mlp']['words']}" in page
        )
