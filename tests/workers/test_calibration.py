"""Corrections from finished runs: medians, shrunk by how little was seen, with a range that narrows."""

from __future__ import annotations

import pytest

from workers.calibration import ENOUGH, TIME, Correction, Observation, correction, within

HERE = ("CPU", "small", "30 modules")


def seen(
    *ratios: float, device: str = "CPU", model: str = "small", setting: str = "30 modules"
) -> list[Observation]:
    return [Observation(device, model, setting, ratio) for ratio in ratios]


def learned(runs: list[Observation]) -> Correction:
    return correction(runs, *HERE, TIME)


def test_nothing_seen_changes_nothing_and_says_rough() -> None:
    found = learned([])
    assert (found.factor, found.runs, found.is_rough) == (1.0, 0, True)
    assert found.span(60)["high"] > 3 * 60


def test_one_run_on_the_device_already_corrects_most_of_it() -> None:
    found = learned(seen(2.0))
    assert 1.8 < found.factor < 2.0
    assert found.is_rough


def test_the_range_narrows_with_every_run() -> None:
    spreads = [learned(seen(*[2.0, 2.1, 1.9, 2.0, 2.05, 1.95][:count])).spread for count in range(7)]
    assert spreads == sorted(spreads, reverse=True)
    assert not learned(seen(*[2.0] * ENOUGH)).is_rough


def test_one_odd_run_moves_nothing() -> None:
    assert learned(seen(2.0, 2.0, 2.0, 2.0, 40.0)).factor == pytest.approx(2.0, rel=0.03)


def test_another_model_on_the_same_device_teaches_a_part() -> None:
    found = learned(seen(2.0, 2.0, 2.0, model="large"))
    assert found.factor == pytest.approx(2.0, rel=0.1)
    assert found.spread > learned(seen(2.0, 2.0, 2.0)).spread


def test_another_device_teaches_nothing() -> None:
    assert learned(seen(9.0, 9.0, 9.0, device="Tesla T4")).factor == 1.0


def test_a_setting_of_its_own_counts_more_than_the_rest() -> None:
    others = seen(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, setting="210 modules")
    own = seen(1.5, 1.5, 1.5, 1.5, 1.5, 1.5)
    assert learned(others + own).factor > 1.3
    assert correction(others + own, "CPU", "small", "210 modules", TIME).factor < 1.15


def test_nine_of_ten_errors_lie_within_what_is_told() -> None:
    assert within([1.05, 0.9, 1.02]) == pytest.approx(0.1)
    assert within([1.0] * 19 + [5.0]) == 0.0
    assert within([]) is None
