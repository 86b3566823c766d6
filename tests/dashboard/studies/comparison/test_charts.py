"""Curves: thinning, cursors of live updates, colours and tables."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from dashboard.charts.curves import Cursor, colours, comparison, loss_summary, points_after, table, thin
from dashboard.models import Job, MetricSeries, TrainingRun

LOSSES = [(step, 2.0 - step / 100) for step in range(1, 101)]


def series(run: TrainingRun, points: list[tuple[int, float]], name: str = "train/loss") -> MetricSeries:
    MetricSeries.objects.append(run, name, points)
    return MetricSeries.objects.get(run=run, name=name)


def test_short_curves_are_not_thinned() -> None:
    assert thin(LOSSES) == LOSSES


def test_thinning_keeps_ends_and_peaks() -> None:
    points = [(step, 1.0) for step in range(50_000)]
    points[777], points[40_001] = (777, 9.0), (40_001, -3.0)
    kept = thin(points)
    assert len(kept) <= 1000
    assert {points[0], points[777], points[40_001], points[-1]} <= set(kept)


@given(st.lists(st.floats(width=32), min_size=0, max_size=400), st.integers(6, 50))
def test_thinning_keeps_limit_and_order(values: list[float], limit: int) -> None:
    kept = thin(list(enumerate(values)), limit)
    steps = [step for step, _value in kept]
    assert len(kept) <= max(limit, 0) or len(values) <= limit
    assert steps == sorted(set(steps))


def test_malformed_cursor_is_ignored() -> None:
    for text in ("", "1", "a.b.c", "1.2.3.4", "-1.2.3", "٣.1.1", "1.-2.3", "9" * 30 + ".1.1"):
        assert Cursor.parse(text) == Cursor()


def test_news_contain_only_new_points(run: TrainingRun) -> None:
    series(run, LOSSES[:10])
    first, cursor = points_after(run, Cursor())
    MetricSeries.objects.append(run, "train/loss", LOSSES[10:12])
    MetricSeries.objects.append(run, "validation/loss", [(10, 1.5)])
    second, _cursor = points_after(run, cursor)
    assert (first["replace"], len(first["curves"]["train/loss"])) == (True, 10)
    assert second["replace"] is False
    assert [step for step, _value in second["curves"]["train/loss"]] == [11, 12]
    assert second["curves"]["validation/loss"] == [(10, 1.5)]


def test_news_start_over_with_a_new_attempt(run: TrainingRun) -> None:
    series(run, LOSSES[:10])
    _first, cursor = points_after(run, Cursor())
    Job.objects.filter(pk=run.job_id or 0).update(attempt=1, phase="training")
    again, _cursor = points_after(TrainingRun.objects.get(pk=run.pk), cursor)
    assert (again["replace"], len(again["curves"]["train/loss"])) == (True, 10)


def test_news_replace_points_of_a_superseded_attempt(run: TrainingRun) -> None:
    job = Job.objects.filter(pk=run.job_id or 0)
    job.update(attempt=1, phase="training")
    series(run, LOSSES[:10])
    _first, cursor = points_after(TrainingRun.objects.get(pk=run.pk), Cursor())
    job.update(attempt=2, phase="loading")
    waiting, cursor = points_after(TrainingRun.objects.get(pk=run.pk), cursor)
    # From the checkpoint of step 5 on, and past the last old point before the page looks again.
    MetricSeries.objects.append(run, "train/loss", [(step, 9.0) for step in range(6, 13)])
    job.update(phase="training")
    again, _cursor = points_after(TrainingRun.objects.get(pk=run.pk), cursor)
    assert (waiting["replace"], again["replace"]) == (False, True)
    assert [value for _step, value in again["curves"]["train/loss"]][5:] == [9.0] * 7


def test_news_start_over_when_a_curve_was_cut(run: TrainingRun) -> None:
    series(run, LOSSES[:10])
    _first, cursor = points_after(run, Cursor())
    MetricSeries.objects.append(run, "train/loss", LOSSES[:2])
    again, _cursor = points_after(run, cursor)
    assert (again["replace"], len(again["curves"]["train/loss"])) == (True, 2)


def test_non_finite_value_is_a_gap(run: TrainingRun) -> None:
    series(run, [(1, 1.0), (2, math.inf)])
    assert points_after(run, Cursor())[0]["curves"]["train/loss"] == [(1, 1.0), (2, None)]


def test_finding_states_a_fall(run: TrainingRun) -> None:
    assert loss_summary(None) == "Loss by step"
    assert loss_summary(series(run, LOSSES)) == "Training loss fell from 1.95 to 1.04"


def test_finding_states_a_rise_or_no_change(run: TrainingRun) -> None:
    assert loss_summary(series(run, [(1, 1.0), (2, 2.0)])) == "Training loss rose from 1 to 2"
    assert loss_summary(series(run, [(1, 1.0), (2, 1.001)])) == "Training loss stayed near 1"


def test_colours_are_stable_and_unique() -> None:
    assert colours([7])[7] == colours([9, 7])[7]
    looks = [tuple(look.values()) for look in colours([1, 6, 11, 16, 21, 26]).values()]
    assert len(set(looks)) == 6


def test_runs_without_points_have_no_curve(run: TrainingRun) -> None:
    assert comparison([run], "train/loss")["series"] == []
    series(run, LOSSES)
    assert [one["label"] for one in comparison([run], "train/loss")["series"]] == [f"{run.name} #{run.pk}"]


def test_table_covers_all_steps() -> None:
    rows = table({"train/loss": LOSSES, "validation/loss": [(100, 1.2)]}, rows=5)
    assert [step for step, _values in rows] == [1, 26, 50, 75, 100] or len(rows) == 5
    assert rows[-1] == (100, [1.0, 1.2])
    assert rows[0][1][1] is None
